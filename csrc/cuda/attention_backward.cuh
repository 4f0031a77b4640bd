// Attention backward, in three kernels; attention_joint_backward.cuh has another form:
//   dq         query-stationary, as the forward; also delta = rowsum(do * o) of its queries
//   dk and dv  key-stationary; the queries are split among blocks, since there are few keys
//   fold       adds the splits, for dk and for dv
// With P = exp(S - lse) recomputed: dP = do v^T, dS = P * (dP - delta), dq = scale dS k,
// dk = scale dS^T q, dv = P^T do (Dao et al., 2022, appendix B.2).
#pragma once

#include "cuda/attention_config.cuh"
#include "cuda/attention_launch.cuh"

namespace pvt_kernels::cuda {

// What dq and dk and dv keep in shared memory: two tiles of their own rows, pairs of tiles that
// pass by, and numbers of single queries.
template <class Atom, int D, class Tiling_, int kRowValues>
struct BackwardMemory {
  using T = typename Atom::Type;
  using Tiling = Tiling_;
  using OwnTile = TileCopy<T, Tiling::kRows, D, false, Tiling::kThreads>;
  using PassingTile = TileCopy<T, Tiling::kStep, D, Atom::kCopiesAsync, Tiling::kThreads>;
  using PassingTiles = TilePairs<PassingTile, PassingTile>;
  static constexpr int kStride = OwnTile::kStride;
  static constexpr int kScratchBytes = Atom::scratch_bytes(Tiling::kWarpRows, Tiling::kStep);
  static constexpr int kBytes = (2 * OwnTile::kSize + PassingTiles::kSize) * sizeof(T) +
                                Tiling::kWarps * kScratchBytes + kRowValues * sizeof(float);
  // of a warp's own rows, in a tile of those
  static __device__ __forceinline__ int warp_offset() {
    return warp_index() * Tiling::kWarpRows * kStride;
  }

  T *first, *second, *passing;
  unsigned char* scratch;
  float* row_values;

  __device__ BackwardMemory() {
    first = reinterpret_cast<T*>(shared_memory);
    second = first + OwnTile::kSize;
    passing = second + OwnTile::kSize;
    scratch = reinterpret_cast<unsigned char*>(passing + PassingTiles::kSize);
    row_values = reinterpret_cast<float*>(scratch + Tiling::kWarps * kScratchBytes);
    scratch += warp_index() * kScratchBytes;
  }
};

// A query's lse, to base 2, which turns its scores into probabilities. fp32's is taken in two
// parts, since what is lost of it, all probabilities of the row get wrong: the product of 12 bits
// of lse and 12 of the logarithm, which is exact, and the rest.
template <class T>
struct LogSumExp {
  static constexpr int kParts = sizeof(T) == 4 ? 2 : 1;
  float high, rest;

  // Of a query that isn't there: its probabilities are 0.
  __device__ LogSumExp() : high(INFINITY), rest(0.0f) {}
  __device__ explicit LogSumExp(float lse) : high(lse * kLog2e), rest(0.0f) {
    if constexpr (kParts == 2) {
      constexpr float kLog2eHigh = 1.4423828125f, kLog2eRest = kLog2e - kLog2eHigh;
      const float lse_high = __uint_as_float(__float_as_uint(lse) & 0xfffff000);
      high = lse_high * kLog2eHigh;
      rest = (lse - lse_high) * kLog2eHigh + lse * kLog2eRest;
    }
  }
  __device__ LogSumExp(float high, float rest) : high(high), rest(rest) {}

  __device__ __forceinline__ float probability(float score, float scale) const {
    float x = fmaf(score, scale, -high);
    if constexpr (kParts == 2) x -= rest;
    return ptx::exp2(x);
  }
};

// Writes a warp's part of dk or dv times `factor`, of `rows` keys from `to` on and of channels from
// `first_channel` on.
template <class Layout, int kRows, int kColumns>
__device__ __forceinline__ void write_gradient(float* to,
                                               const Accumulator<Layout, kRows, kColumns>& from,
                                               float factor, int rows, int first_channel,
                                               const AttentionSizes& s) {
  const int stride = s.heads * s.head_dim;
  from.for_each_pair([&](int row, int column, float first, float second) {
    const int channel = first_channel + column;
    if (row < rows && channel < s.head_dim)
      ptx::store_global(reinterpret_cast<float2*>(to + std::int64_t{row} * stride + channel),
                        make_float2(first * factor, second * factor));
  });
}

template <class Atom, int D>
using DqMemory = BackwardMemory<Atom, D, typename Config<Atom, D>::Dq, Config<Atom, D>::Dq::kRows>;

// Grid: ceil(N / Tiling::kRows) blocks for each head of each image.
template <class Atom, int D>
__global__ void __launch_bounds__(Config<Atom, D>::Dq::kThreads, Config<Atom, D>::Dq::kBlocks)
    attention_dq_kernel(AttentionBackward p) {
  using Memory = DqMemory<Atom, D>;
  using Tiling = typename Memory::Tiling;
  using T = typename Atom::Type;
  constexpr int kKeys = Tiling::kStep, kWarpRows = Tiling::kWarpRows;
  using Gradient = Accumulator<typename Atom::Layout, kWarpRows, D>;
  using Weights = Accumulator<typename Atom::Layout, kWarpRows, kKeys>;
  const AttentionSizes& s = p.sizes;
  const Work work(blockIdx.x, ceil_div(s.queries, Tiling::kRows), s.heads);
  const int first_query = work.tile * Tiling::kRows;
  const Rows<T> k = head_rows<T>(p.k, work, s.keys, s.head_dim);
  const Rows<T> v = head_rows<T>(p.v, work, s.keys, s.head_dim);

  Memory memory;
  typename Memory::PassingTiles tiles(memory.passing);
  const auto fetch = [&](int tile) { tiles.fetch(tile, k, tile * kKeys, 0, v, tile * kKeys, 0); };
  fetch(0);
  {
    typename Memory::OwnTile q, d_o, o;
    const auto start = [&](typename Memory::OwnTile& tile, const Heads& t) {
      tile.start(head_rows<T>(t, work, s.queries, s.head_dim), first_query, 0, memory.first);
    };
    start(d_o, p.d_o);
    start(o, p.o);
    start(q, p.q);
    q.finish(memory.first);
    d_o.finish(memory.second);
    d_o.for_each_product(o, [&](int row, float sum) {
      ptx::store_shared(memory.row_values + row, sum);
      if (first_query + row < s.queries)
        ptx::store_global(p.delta + query_offset(work, first_query + row, s), sum);
    });
  }
  T* queries = memory.first + Memory::warp_offset();
  const T* d_outputs = memory.second + Memory::warp_offset();
  __syncthreads();

  Gradient dq;
  dq.clear();
  LogSumExp<T> lse[Gradient::kLaneRows];
  float delta[Gradient::kLaneRows];
  const int warp_query = first_query + warp_index() * kWarpRows;
#pragma unroll
  for (int r = 0; r < Gradient::kLaneRows; ++r) {
    const int query = warp_query + dq.row(r);
    if (query < s.queries)
      lse[r] = LogSumExp<T>(ptx::load_global(p.lse + query_offset(work, query, s)));
    delta[r] = ptx::load_shared(memory.row_values + query - first_query);
  }

  const float scale = s.scale * kLog2e;
  const int count = ceil_div(s.keys, kKeys);
  for (int tile = 0; tile < count; ++tile) {
    tiles.wait(tile);
    if (tile + 1 < count) fetch(tile + 1);

    Weights weights, d_weights;
    weights.clear();
    d_weights.clear();
    Atom::template multiply<D, Stored::by_row, Stored::by_column>(
        weights, queries, Memory::kStride, tiles.first(tile), Memory::kStride, memory.scratch);
    Atom::template multiply<D, Stored::by_row, Stored::by_column>(
        d_weights, d_outputs, Memory::kStride, tiles.second(tile), Memory::kStride, memory.scratch);
    weights.for_each([&](int r, int, float& x) { x = lse[r].probability(x, scale); });
    // a key that isn't there has the score 0, of which the exponential may be infinite
    const int valid = s.keys - tile * kKeys;
    if (valid < kKeys)
      weights.for_each([&](int, int key, float& x) { x = key < valid ? x : 0.0f; });
    d_weights.for_each_with(weights, [&](int r, int, float& d_weight, float weight) {
      d_weight = weight * (d_weight - delta[r]);
    });
    Atom::multiply_weights(dq, d_weights, tiles.first(tile), Memory::kStride, memory.scratch);
  }

  dq.for_each([&](int, int, float& x) { x *= s.scale; });
  // each warp's queries are its own, and not needed any more once all its lanes are here
  __syncwarp();
  store_rows(dq, queries, Memory::kStride);
  write_head_rows<kWarpRows, D>(queries, p.dq, work, s.queries, warp_query, s);
}

// Of a query that passes by: delta and the parts of lse. There is room for two steps.
template <class T>
constexpr int kStepValues = 1 + LogSumExp<T>::kParts;
template <class Atom, int D>
using DkDvMemory =
    BackwardMemory<Atom, D, typename Config<Atom, D>::DkDv,
                   2 * kStepValues<typename Atom::Type> * Config<Atom, D>::DkDv::kStep>;

// Grid: for each split of the queries and each head of each image, ceil(M / Tiling::kRows) blocks.
// A warp's rows are keys, its columns queries: every product is of transposed scores.
template <class Atom, int D>
__global__ void __launch_bounds__(Config<Atom, D>::DkDv::kThreads, Config<Atom, D>::DkDv::kBlocks)
    attention_dk_dv_kernel(AttentionBackward p) {
  using Memory = DkDvMemory<Atom, D>;
  using Tiling = typename Memory::Tiling;
  using T = typename Atom::Type;
  constexpr int kQueries = Tiling::kStep, kWarpRows = Tiling::kWarpRows;
  constexpr int kRowValues = kStepValues<T> * kQueries;
  static_assert(kRowValues <= Tiling::kThreads);
  using Gradient = Accumulator<typename Atom::Layout, kWarpRows, D>;
  using Weights = Accumulator<typename Atom::Layout, kWarpRows, kQueries>;
  const AttentionSizes& s = p.sizes;
  const int key_tiles = ceil_div(s.keys, Tiling::kRows);
  // before the loop and after it, since there are no registers for it in between
  const auto work_of = [&](unsigned block) { return Work(block, key_tiles * p.splits, s.heads); };
  const Work work = work_of(blockIdx.x);
  const int split = work.tile / key_tiles;
  const int first_key = work.tile % key_tiles * Tiling::kRows;
  const Rows<T> q = head_rows<T>(p.q, work, s.queries, s.head_dim);
  const Rows<T> d_o = head_rows<T>(p.d_o, work, s.queries, s.head_dim);

  // a thread for each query's delta, and for each part of its lse
  enum RowValue { kDelta, kHigh, kRest };
  const int which = static_cast<int>(threadIdx.x) / kQueries;
  float next_value;
  const auto fetch_row_values = [&](int step) {
    const int query = step * kQueries + static_cast<int>(threadIdx.x) % kQueries;
    const bool exists = query < s.queries;
    next_value =
        exists
            ? ptx::load_global((which == kDelta ? p.delta : p.lse) + query_offset(work, query, s))
            : 0.0f;
    if (which != kDelta) {
      const LogSumExp<T> lse = exists ? LogSumExp<T>(next_value) : LogSumExp<T>();
      next_value = which == kHigh ? lse.high : lse.rest;
    }
  };

  const int steps = ceil_div(s.queries, kQueries), begin = split * p.steps_per_split;
  const int end = begin + p.steps_per_split < steps ? begin + p.steps_per_split : steps;

  Memory memory;
  typename Memory::PassingTiles tiles(memory.passing);
  const auto fetch = [&](int step) {
    tiles.fetch(step, q, step * kQueries, 0, d_o, step * kQueries, 0);
  };
  fetch(begin);
  if (threadIdx.x < kRowValues) fetch_row_values(begin);
  {
    typename Memory::OwnTile k, v;
    k.start(head_rows<T>(p.k, work, s.keys, s.head_dim), first_key, 0, memory.first);
    v.start(head_rows<T>(p.v, work, s.keys, s.head_dim), first_key, 0, memory.second);
    k.finish(memory.first);
    v.finish(memory.second);
  }
  const T* keys = memory.first + Memory::warp_offset();
  const T* values = memory.second + Memory::warp_offset();

  const float scale = s.scale * kLog2e;
  Gradient dk, dv;
  dk.clear();
  dv.clear();
  for (int step = begin; step < end; ++step) {
    float* row_values = memory.row_values + step % 2 * kRowValues;
    if (threadIdx.x < kRowValues) ptx::store_shared(row_values + threadIdx.x, next_value);
    const auto row_value = [&](RowValue which, int query) {
      return ptx::load_shared(row_values + which * kQueries + query);
    };
    tiles.wait(step);
    if (step + 1 < end) {
      fetch(step + 1);
      if (threadIdx.x < kRowValues) fetch_row_values(step + 1);
    }

    Weights weights;
    weights.clear();
    Atom::template multiply<D, Stored::by_row, Stored::by_column>(
        weights, keys, Memory::kStride, tiles.first(step), Memory::kStride, memory.scratch);
    weights.for_each([&](int, int query, float& x) {
      LogSumExp<T> lse(row_value(kHigh, query), 0.0f);
      if constexpr (LogSumExp<T>::kParts == 2) lse.rest = row_value(kRest, query);
      x = lse.probability(x, scale);
    });
    Atom::multiply_weights(dv, weights, tiles.second(step), Memory::kStride, memory.scratch);

    Weights d_weights;
    d_weights.clear();
    Atom::template multiply<D, Stored::by_row, Stored::by_column>(
        d_weights, values, Memory::kStride, tiles.second(step), Memory::kStride, memory.scratch);
    d_weights.for_each_with(weights, [&](int, int query, float& x, float weight) {
      x = weight * (x - row_value(kDelta, query));
    });
    Atom::multiply_weights(dk, d_weights, tiles.first(step), Memory::kStride, memory.scratch);
  }

  const Work again = work_of(ptx::block_index());
  const int warp_key = again.tile % key_tiles * Tiling::kRows + warp_index() * kWarpRows;
  const std::int64_t tensor = std::int64_t{p.batch} * s.keys * s.heads * s.head_dim;
  float* partial =
      p.partials + again.tile / key_tiles * 2 * tensor + row_offset(again, s.keys, warp_key, s);
  write_gradient(partial, dk, s.scale, s.keys - warp_key, 0, s);
  write_gradient(partial + tensor, dv, 1.0f, s.keys - warp_key, 0, s);
}

}  // namespace pvt_kernels::cuda
