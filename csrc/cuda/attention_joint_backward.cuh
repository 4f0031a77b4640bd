// Attention backward where products cost the most, in three kernels:
//   delta          rowsum(do * o) of every query
//   dq, dk and dv  key-stationary, S and dP once: five products where the separate kernels have
//                  seven; the queries are split among blocks
//   fold           adds the splits, for dk and for dv
// Every block has a share of dq for every query that passes by. The blocks of the same queries add
// theirs to dq itself in the order of their keys, so that dq needs no other memory, and every run
// gives the same bits: each tells how far it is, and waits for the one before it.
#pragma once

#include "cuda/attention_backward.cuh"

namespace pvt_kernels::cuda {

// What a block of dq, dk and dv works on. It waits in shared memory, since there are no registers
// for it.
template <class T>
struct JointWork {
  const T *q, *d_o, *k, *v;  // of the head
  const float *lse, *delta;
  T* dq;
  float* partials;     // of the split: the head's of the first key
  unsigned* progress;  // of the block's first warp
  int key_tile, begin, end;

  __device__ JointWork(const AttentionBackward& p, unsigned block, int key_tiles, int steps) {
    const AttentionSizes& s = p.sizes;
    const Work work(block, key_tiles * p.splits, s.heads);
    const auto head = [&](const Heads& t) { return head_rows<T>(t, work, 0, 0).data; };
    q = head(p.q);
    d_o = head(p.d_o);
    k = head(p.k);
    v = head(p.v);
    lse = p.lse + query_offset(work, 0, s);
    delta = p.delta + query_offset(work, 0, s);
    dq = static_cast<T*>(p.dq) + row_offset(work, s.queries, 0, s);
    const int split = work.tile / key_tiles;
    key_tile = work.tile % key_tiles;
    const std::int64_t tensor = std::int64_t{p.batch} * s.keys * s.heads * s.head_dim;
    partials = p.partials + split * 2 * tensor + row_offset(work, s.keys, 0, s);
    progress = p.progress + 1 + std::int64_t{block} * JointTiling::kWarps;
    begin = split * p.steps_per_split;
    end = begin + p.steps_per_split < steps ? begin + p.steps_per_split : steps;
  }
};

template <class Atom, int D>
struct JointMemory {
  using T = typename Atom::Type;
  using Tiling = typename Config<Atom, D>::DkDv;
  using Tile = TileCopy<T, Tiling::kRows, D, false, Tiling::kThreads>;
  static_assert(Tiling::kRows == Tiling::kStep);
  static constexpr int kStride = Tile::kStride;
  static constexpr int kWeightStride = padded_stride<T>(Tiling::kRows);
  static constexpr int kBufferSize = Tiling::kRows * (D < Tiling::kRows ? kWeightStride : kStride);
  static constexpr int kRowValues = kStepValues<T> * Tiling::kRows;
  static constexpr int kBytes =
      2 * kBufferSize * sizeof(T) + kRowValues * sizeof(float) + sizeof(JointWork<T>);

  // two tiles at a time, of which one takes turns with the weights
  T *first, *second;
  float* row_values;
  JointWork<T>* work;

  __device__ JointMemory() {
    first = reinterpret_cast<T*>(shared_memory);
    second = first + kBufferSize;
    row_values = reinterpret_cast<float*>(second + kBufferSize);
    work = reinterpret_cast<JointWork<T>*>(row_values + kRowValues);
  }
};

// Grid: as many blocks as there are tiles of queries. They also clear `progress`.
template <class Atom, int D>
__global__ void __launch_bounds__(Config<Atom, D>::DkDv::kThreads)
    attention_delta_kernel(AttentionBackward p) {
  using Tile = typename JointMemory<Atom, D>::Tile;
  using Tiling = typename Config<Atom, D>::DkDv;
  using T = typename Atom::Type;
  const AttentionSizes& s = p.sizes;
  const Work work(blockIdx.x, ceil_div(s.queries, Tiling::kRows), s.heads);
  const int first_query = work.tile * Tiling::kRows;
  Tile d_o, o;
  d_o.start(head_rows<T>(p.d_o, work, s.queries, s.head_dim), first_query, 0, nullptr);
  o.start(head_rows<T>(p.o, work, s.queries, s.head_dim), first_query, 0, nullptr);
  d_o.for_each_product(o, [&](int row, float sum) {
    if (first_query + row < s.queries)
      ptx::store_global(p.delta + query_offset(work, first_query + row, s), sum);
  });
  const std::int64_t thread = std::int64_t{blockIdx.x} * Tiling::kThreads + threadIdx.x;
  for (std::int64_t i = thread; i < p.progress_words;
       i += std::int64_t{gridDim.x} * Tiling::kThreads)
    ptx::store_global(p.progress + i, 0u);
}

// Grid: for each split of the queries and each head of each image, ceil(M / Tiling::kRows) blocks.
// Of 64 keys by 64 queries (queries or keys by channels) each of four warps has a quarter. What is
// of scores has keys for rows, as in the kernel of dk and dv alone.
template <class Atom, int D>
__global__ void __launch_bounds__(Config<Atom, D>::DkDv::kThreads, Config<Atom, D>::DkDv::kBlocks)
    attention_dq_dk_dv_kernel(AttentionBackward p) {
  using Memory = JointMemory<Atom, D>;
  using Tiling = typename Memory::Tiling;
  using T = typename Atom::Type;
  constexpr int kRows = Tiling::kRows, kStride = Memory::kStride;
  constexpr int kWeightStride = Memory::kWeightStride;
  using Weights = Accumulator<typename Atom::Layout, kRows / 2, kRows / 2>;
  using Gradient = Accumulator<typename Atom::Layout, kRows / 2, D / 2>;
  static_assert(Tiling::kWarps == 4 && Tiling::kThreads == 2 * kRows);
  const AttentionSizes& s = p.sizes;
  Memory memory;
  if (threadIdx.x == 0) {
    // Not by blockIdx: a block must have begun when those begin that wait for it.
    const unsigned block = ptx::take_ticket(p.progress);
    const JointWork<T> work(p, block, ceil_div(s.keys, kRows), ceil_div(s.queries, kRows));
    std::uint32_t words[sizeof(work) / 4];
    memcpy(words, &work, sizeof(work));
#pragma unroll
    for (int i = 0; i < int{sizeof(work) / 4}; ++i)
      ptx::store_shared(reinterpret_cast<std::uint32_t*>(memory.work) + i, words[i]);
  }
  __syncthreads();
  const auto work = [&](auto field) { return ptx::load_shared(&(memory.work->*field)); };
  using W = JointWork<T>;

  // the warp's quarter
  const int warp_row = warp_index() / 2 * (kRows / 2), warp_column = warp_index() % 2 * (kRows / 2);
  const int warp_channel = warp_index() % 2 * (D / 2);

  // a thread for each query's lse and for its delta
  enum RowValue { kDelta, kHigh, kRest };
  const int thread_row = static_cast<int>(threadIdx.x) % kRows;
  const bool has_lse = static_cast<int>(threadIdx.x) < kRows;
  float next_value;
  bool next_exists;
  const auto fetch_row_values = [&](int step) {
    const int query = step * kRows + thread_row;
    next_exists = query < s.queries;
    const float* values = work(has_lse ? &W::lse : &W::delta);
    next_value = next_exists ? ptx::load_global(values + query) : 0.0f;
  };
  const auto put_row_values = [&] {
    const auto put = [&](RowValue which, float value) {
      ptx::store_shared(memory.row_values + which * kRows + thread_row, value);
    };
    if (has_lse) {
      const LogSumExp<T> lse = next_exists ? LogSumExp<T>(next_value) : LogSumExp<T>();
      put(kHigh, lse.high);
      if constexpr (LogSumExp<T>::kParts == 2) put(kRest, lse.rest);
    } else {
      put(kDelta, next_value);
    }
  };
  const auto row_value = [&](RowValue which, int column) {
    return ptx::load_shared(memory.row_values + which * kRows + warp_column + column);
  };

  T *own = memory.first, *passing = memory.second;
  typename Memory::Tile own_tile, passing_tile;
  const auto fetch_own = [&](auto keys, const Heads& heads) {
    const Rows<T> rows{work(keys), heads.token_stride, s.keys, s.head_dim};
    own_tile.start(rows, work(&W::key_tile) * kRows, 0, own);
  };
  const auto fetch_passing = [&](auto queries, const Heads& heads, int step) {
    const Rows<T> rows{work(queries), heads.token_stride, s.queries, s.head_dim};
    passing_tile.start(rows, step * kRows, 0, passing);
  };
  const int begin = work(&W::begin);
  fetch_own(&W::k, p.k);
  fetch_passing(&W::q, p.q, begin);
  fetch_row_values(begin);
  own_tile.finish(own);
  passing_tile.finish(passing);
  put_row_values();
  __syncthreads();

  const float scale = s.scale * kLog2e;
  Gradient dk, dv;
  dk.clear();
  dv.clear();
  for (int step = begin; step < work(&W::end); ++step) {
    const auto multiply_tiles = [&](Weights& c) {
      c.clear();
      Atom::template multiply<D, Stored::by_row, Stored::by_column>(
          c, own + warp_row * kStride, kStride, passing + warp_column * kStride, kStride, nullptr);
    };
    const auto store_weights = [&](const Weights& c) {
      store_rows(c, own + warp_row * kWeightStride + warp_column, kWeightStride);
    };
    const auto multiply_weights = [&](Gradient& c) {
      Atom::template multiply<kRows, Stored::by_row, Stored::by_row>(
          c, own + warp_row * kWeightStride, kWeightStride, passing + warp_channel, kStride,
          nullptr);
    };

    fetch_own(&W::v, p.v);
    fetch_passing(&W::d_o, p.d_o, step);
    Weights weights;
    multiply_tiles(weights);
    weights.for_each([&](int, int query, float& x) {
      LogSumExp<T> lse(row_value(kHigh, query), 0.0f);
      if constexpr (LogSumExp<T>::kParts == 2) lse.rest = row_value(kRest, query);
      x = lse.probability(x, scale);
    });
    // a key that isn't there has the score 0, of which the exponential may be infinite
    const int valid = s.keys - work(&W::key_tile) * kRows - warp_row;
    if (valid < kRows / 2)
      weights.for_each([&](int r, int, float& x) { x = Weights::row(r) < valid ? x : 0.0f; });
    __syncthreads();
    own_tile.finish(own);
    passing_tile.finish(passing);
    __syncthreads();

    fetch_passing(&W::q, p.q, step);
    Weights d_weights;
    multiply_tiles(d_weights);
    __syncthreads();
    store_weights(weights);
    d_weights.for_each_with(weights, [&](int, int query, float& x, float weight) {
      x = weight * (x - row_value(kDelta, query));
    });
    __syncthreads();

    multiply_weights(dv);
    __syncthreads();
    store_weights(d_weights);
    passing_tile.finish(passing);
    __syncthreads();

    fetch_own(&W::k, p.k);
    multiply_weights(dk);
    __syncthreads();
    own_tile.finish(passing);
    __syncthreads();

    if (step + 1 < work(&W::end)) {
      fetch_passing(&W::q, p.q, step + 1);
      fetch_row_values(step + 1);
    }
    Gradient dq;
    dq.clear();
    Atom::template multiply<kRows, Stored::by_column, Stored::by_row>(
        dq, own + warp_row, kWeightStride, passing + warp_channel, kStride, nullptr);
    __syncthreads();
    // the keys are where the queries were
    T* const keys = passing;
    passing = own;
    own = keys;
    if (step + 1 < work(&W::end)) {
      passing_tile.finish(passing);
      put_row_values();
    }
    __syncthreads();

    // after the same warp of the block with the keys before these
    const unsigned done = step - work(&W::begin) + 1;
    const bool first_keys = work(&W::key_tile) == 0;
    unsigned* const progress = work(&W::progress) + warp_index();
    if (!first_keys && lane_index() == 0) ptx::wait_for(progress - Tiling::kWarps, done);
    __syncwarp();
    const int first_query = step * kRows + warp_row, stride = s.heads * s.head_dim;
    T* const first_of_head = work(&W::dq) + std::int64_t{first_query} * stride + warp_channel;
    const auto address = [&](int row, int column) {
      return first_query + row < s.queries && warp_channel + column < s.head_dim
                 ? reinterpret_cast<float2*>(first_of_head + std::int64_t{row} * stride + column)
                 : nullptr;
    };
    Gradient sum;
    sum.for_each_pair([&](int row, int column, float& first, float& second) {
      const float2* from = first_keys ? nullptr : address(row, column);
      const float2 before = from ? ptx::load_written(from) : make_float2(0.0f, 0.0f);
      first = before.x;
      second = before.y;
    });
    sum.for_each_with(dq, [&](int, int, float& x, float own) { x = fmaf(own, s.scale, x); });
    sum.for_each_pair([&](int row, int column, float first, float second) {
      if (float2* to = address(row, column)) ptx::store_global(to, make_float2(first, second));
    });
    __syncwarp();
    if (lane_index() == 0) ptx::publish(progress, done);
  }

  const int warp_key = work(&W::key_tile) * kRows + warp_row;
  const std::int64_t tensor = std::int64_t{p.batch} * s.keys * s.heads * s.head_dim;
  float* partial = work(&W::partials) + std::int64_t{warp_key} * s.heads * s.head_dim;
  write_gradient(partial, dk, s.scale, s.keys - warp_key, warp_channel, s);
  write_gradient(partial + tensor, dv, 1.0f, s.keys - warp_key, warp_channel, s);
}

}  // namespace pvt_kernels::cuda
