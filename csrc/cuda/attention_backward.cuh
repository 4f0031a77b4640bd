// Attention backward, in four kernels:
//   delta      rowsum(do * o)
//   dq         query-stationary, as the forward
//   dk and dv  key-stationary; the queries are split among blocks, since there are few keys
//   fold       adds the splits, for dk and for dv
// With P = exp(S - lse) recomputed: dP = do v^T, dS = P * (dP - delta), dq = scale dS k,
// dk = scale dS^T q, dv = P^T do (Dao et al., 2022, appendix B.2).
#pragma once

#include "cuda/attention_launch.cuh"

namespace pvt_kernels::cuda {

// What the dq kernel and the dk and dv kernel keep in shared memory: two tiles of their own rows,
// pairs of tiles that pass by, and lse and delta of two steps of queries.
template <class Atom, int D>
struct BackwardMemory {
  using T = typename Atom::Type;
  static constexpr int kStep = backward_step<T>(D), kWarps = backward_warps<Atom>(D);
  static constexpr int kThreads = kWarps * kWarpSize, kRows = kWarps * kWarpRows;
  using OwnTile = TileCopy<T, kRows, D, false, kThreads>;
  using PassingTile = TileCopy<T, kStep, D, Atom::kCopiesAsync, kThreads>;
  using PassingTiles = TilePairs<PassingTile, PassingTile>;
  static constexpr int kStride = OwnTile::kStride;
  static constexpr int kScratchBytes = Atom::scratch_bytes(kStep);
  // a lane of one warp loads each
  static_assert(kStep <= kWarpSize);
  static constexpr int kRowValues = 2 * 2 * kWarpSize;
  static constexpr int kBytes = (2 * OwnTile::kSize + PassingTiles::kSize) * sizeof(T) +
                                kWarps * kScratchBytes + kRowValues * sizeof(float);

  T *first, *second, *passing;
  unsigned char* scratch;
  float* row_values;

  __device__ BackwardMemory() {
    first = reinterpret_cast<T*>(shared_memory);
    second = first + OwnTile::kSize;
    passing = second + OwnTile::kSize;
    scratch = reinterpret_cast<unsigned char*>(passing + PassingTiles::kSize);
    row_values = reinterpret_cast<float*>(scratch + kWarps * kScratchBytes);
    scratch += warp_index() * kScratchBytes;
  }

  template <class Source>
  __device__ __forceinline__ void load_own(const Source& a, const Source& b, std::int64_t row) {
    OwnTile a_tile, b_tile;
    a_tile.start(a, row, 0, first);
    b_tile.start(b, row, 0, second);
    a_tile.finish(first);
    b_tile.finish(second);
    first += warp_index() * kWarpRows * kStride;
    second += warp_index() * kWarpRows * kStride;
  }
};

// As many lanes for each row as it has vectors; the rows are those of (B, heads, N).
template <class Atom, int D>
__global__ void __launch_bounds__(kThreads) attention_delta_kernel(AttentionBackward p) {
  using T = typename Atom::Type;
  constexpr int kLanes = D / Vector<T>::kSize;
  const AttentionSizes& s = p.sizes;
  const std::int64_t row = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int column = threadIdx.x % kLanes * Vector<T>::kSize;
  const std::int64_t query = row % s.queries, batch_head = row / s.queries;
  const std::int64_t batch = batch_head / s.heads, head = batch_head % s.heads;
  const auto load = [&](const pvtk_heads& t) {
    const T* address = static_cast<const T*>(t.data) + batch * t.batch_stride +
                       query * t.token_stride + head * t.head_stride + column;
    return ptx::load_global(reinterpret_cast<const Vector<T>*>(address));
  };
  float sum = 0.0f;
  if (batch < p.batch && column < s.head_dim) {
    const Vector<T> d_o = load(p.d_o), o = load(p.o);
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) sum += to_float(d_o.x[i]) * to_float(o.x[i]);
  }
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (batch < p.batch && column == 0) ptx::store_global(p.delta + row, sum);
}

// Grid: ceil(N / Memory::kRows) blocks for each head of each image.
template <class Atom, int D>
__global__ void __launch_bounds__(BackwardMemory<Atom, D>::kThreads, 2)
    attention_dq_kernel(AttentionBackward p) {
  using Memory = BackwardMemory<Atom, D>;
  using T = typename Atom::Type;
  using Layout = typename Atom::Layout;
  constexpr int kKeys = Memory::kStep;
  const AttentionSizes& s = p.sizes;
  const Work work(ceil_div(s.queries, Memory::kRows), s.heads);
  const std::int64_t first_query = work.tile * Memory::kRows;
  const std::int64_t warp_query = first_query + warp_index() * kWarpRows;
  const Rows<T> k = head_rows<T>(p.k, work, s.keys, s.head_dim);
  const Rows<T> v = head_rows<T>(p.v, work, s.keys, s.head_dim);

  Memory memory;
  typename Memory::PassingTiles tiles(memory.passing);
  const auto fetch = [&](std::int64_t tile) {
    tiles.fetch(tile, k, tile * kKeys, 0, v, tile * kKeys, 0);
  };
  fetch(0);
  memory.load_own(head_rows<T>(p.q, work, s.queries, s.head_dim),
                  head_rows<T>(p.d_o, work, s.queries, s.head_dim), first_query);

  Accumulator<Layout, D> dq;
  dq.clear();
  float lse[kLaneRows], delta[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const std::int64_t query = warp_query + dq.row(r);
    const std::int64_t index = work.batch_head * s.queries + query;
    lse[r] = query < s.queries ? ptx::load_global(p.lse + index) * kLog2e : INFINITY;
    delta[r] = query < s.queries ? ptx::load_global(p.delta + index) : 0.0f;
  }

  const std::int64_t count = ceil_div(s.keys, kKeys);
  for (std::int64_t tile = 0; tile < count; ++tile) {
    tiles.wait(tile);
    if (tile + 1 < count) fetch(tile + 1);

    Accumulator<Layout, kKeys> scores, d_weights;
    scores.clear();
    d_weights.clear();
    Atom::template multiply<kKeys, D, Stored::by_row, Stored::by_column>(
        scores, memory.first, Memory::kStride, tiles.first(tile), Memory::kStride, memory.scratch);
    Atom::template multiply<kKeys, D, Stored::by_row, Stored::by_column>(
        d_weights, memory.second, Memory::kStride, tiles.second(tile), Memory::kStride,
        memory.scratch);
    const std::int64_t valid = s.keys - tile * kKeys;
    const float scale = s.scale * kLog2e;
    d_weights.for_each_with(scores, [&](int r, int key, float& d_weight, float score) {
      float weight = exp2f(score * scale - lse[r]);
      // a key that isn't there has the score 0, of which the exponential may be infinite
      if (valid < kKeys && key >= valid) weight = 0.0f;
      d_weight = weight * (d_weight - delta[r]);
    });
    Atom::template multiply_weights<D, kKeys>(dq, d_weights, tiles.first(tile), Memory::kStride,
                                              memory.scratch);
  }

  dq.for_each([&](int, int, float& x) { x *= s.scale; });
  // each warp's queries are its own, and not needed any more once all its lanes are here
  __syncwarp();
  store_rows(dq, memory.first, Memory::kStride);
  write_head_rows<D>(memory.first, p.dq, work, s.queries, warp_query, s);
}

// Grid: for each split of the queries and each head of each image, ceil(M / Memory::kRows) blocks.
// A warp's rows are keys, its columns queries: every product is of transposed scores.
template <class Atom, int D>
__global__ void __launch_bounds__(BackwardMemory<Atom, D>::kThreads, 2)
    attention_dk_dv_kernel(AttentionBackward p) {
  using Memory = BackwardMemory<Atom, D>;
  using T = typename Atom::Type;
  using Layout = typename Atom::Layout;
  constexpr int kQueries = Memory::kStep;
  const AttentionSizes& s = p.sizes;
  const std::int64_t key_tiles = ceil_div(s.keys, Memory::kRows);
  const Work work(key_tiles * p.splits, s.heads);
  const std::int64_t split = work.tile / key_tiles;
  const std::int64_t first_key = work.tile % key_tiles * Memory::kRows;
  const std::int64_t warp_key = first_key + warp_index() * kWarpRows;
  const Rows<T> q = head_rows<T>(p.q, work, s.queries, s.head_dim);
  const Rows<T> d_o = head_rows<T>(p.d_o, work, s.queries, s.head_dim);

  float next_lse, next_delta;
  const auto fetch_row_values = [&](std::int64_t step) {
    const std::int64_t query = step * kQueries + threadIdx.x;
    const bool exists = threadIdx.x < kQueries && query < s.queries;
    const std::int64_t index = work.batch_head * s.queries + query;
    // the weights of queries that aren't there become 0
    next_lse = exists ? ptx::load_global(p.lse + index) * kLog2e : INFINITY;
    next_delta = exists ? ptx::load_global(p.delta + index) : 0.0f;
  };

  const std::int64_t begin = split * p.steps_per_split;
  std::int64_t end = begin + p.steps_per_split;
  if (end > ceil_div(s.queries, kQueries)) end = ceil_div(s.queries, kQueries);

  Memory memory;
  typename Memory::PassingTiles tiles(memory.passing);
  const auto fetch = [&](std::int64_t step) {
    tiles.fetch(step, q, step * kQueries, 0, d_o, step * kQueries, 0);
  };
  fetch(begin);
  fetch_row_values(begin);
  memory.load_own(head_rows<T>(p.k, work, s.keys, s.head_dim),
                  head_rows<T>(p.v, work, s.keys, s.head_dim), first_key);

  Accumulator<Layout, D> dk, dv;
  dk.clear();
  dv.clear();
  for (std::int64_t step = begin; step < end; ++step) {
    float* lse = memory.row_values + step % 2 * 2 * kWarpSize;
    float* delta = lse + kWarpSize;
    if (warp_index() == 0) {
      ptx::store_shared(lse + lane_index(), next_lse);
      ptx::store_shared(delta + lane_index(), next_delta);
    }
    tiles.wait(step);
    if (step + 1 < end) {
      fetch(step + 1);
      fetch_row_values(step + 1);
    }

    Accumulator<Layout, kQueries> weights;
    weights.clear();
    Atom::template multiply<kQueries, D, Stored::by_row, Stored::by_column>(
        weights, memory.first, Memory::kStride, tiles.first(step), Memory::kStride, memory.scratch);
    const float scale = s.scale * kLog2e;
    weights.for_each(
        [&](int, int query, float& x) { x = exp2f(x * scale - ptx::load_shared(lse + query)); });
    Atom::template multiply_weights<D, kQueries>(dv, weights, tiles.second(step), Memory::kStride,
                                                 memory.scratch);

    Accumulator<Layout, kQueries> d_weights;
    d_weights.clear();
    Atom::template multiply<kQueries, D, Stored::by_row, Stored::by_column>(
        d_weights, memory.second, Memory::kStride, tiles.second(step), Memory::kStride,
        memory.scratch);
    d_weights.for_each_with(weights, [&](int, int query, float& d_weight, float weight) {
      d_weight = weight * (d_weight - ptx::load_shared(delta + query));
    });
    Atom::template multiply_weights<D, kQueries>(dk, d_weights, tiles.first(step), Memory::kStride,
                                                 memory.scratch);
  }

  const std::int64_t tensor = p.batch * s.keys * s.heads * s.head_dim;
  float* partial = p.partials + split * 2 * tensor + row_offset(work, s.keys, warp_key, s);
  const std::int64_t stride = std::int64_t{s.heads} * s.head_dim;
  const auto write = [&](float* to, const Accumulator<Layout, D>& from, float factor) {
    from.for_each_pair([&](int row, int column, float first, float second) {
      if (warp_key + row < s.keys && column < s.head_dim)
        ptx::store_global(reinterpret_cast<float2*>(to + row * stride + column),
                          make_float2(first * factor, second * factor));
    });
  };
  write(partial, dk, s.scale);
  write(partial + tensor, dv, 1.0f);
}

}  // namespace pvt_kernels::cuda
