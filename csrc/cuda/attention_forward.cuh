// Attention forward, query-stationary: a block's queries stay while tiles of keys and values pass,
// with the online softmax of Milakov and Gimelshein (2018).
#pragma once

#include "cuda/attention_launch.cuh"

namespace pvt_kernels::cuda {

template <class Atom, int D>
struct ForwardMemory {
  using T = typename Atom::Type;
  static constexpr int kKeys = forward_step<Atom>(D);
  using QueryTile = TileCopy<T, kBlockRows, D, false>;
  static constexpr int kStride = QueryTile::kStride;
  using KeyTile = TileCopy<T, kKeys, D, Atom::kCopiesAsync>;
  using KeyTiles = TilePairs<KeyTile, KeyTile>;
  static constexpr int kScratchBytes = Atom::scratch_bytes(kKeys);
  static constexpr int kBytes =
      (QueryTile::kSize + KeyTiles::kSize) * sizeof(T) + kWarps * kScratchBytes;

  T *queries, *keys;
  unsigned char* scratch;

  __device__ ForwardMemory() {
    queries = reinterpret_cast<T*>(shared_memory);
    keys = queries + QueryTile::kSize;
    scratch = reinterpret_cast<unsigned char*>(keys + KeyTiles::kSize);
    scratch += warp_index() * kScratchBytes;
  }
};

// The running maximum and sum of a warp's rows; each lane sees those that it holds a part of.
struct OnlineSoftmax {
  float maximum[kLaneRows], total[kLaneRows];

  __device__ OnlineSoftmax() {
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      maximum[r] = -INFINITY;
      total[r] = 0.0f;
    }
  }

  // Turns scores into weights relative to the new maximum, in base 2, and sets `rescale` to what
  // earlier results have to be multiplied by. Keys from `valid` on count for nothing.
  template <class Layout, int kKeys>
  __device__ __forceinline__ void add(Accumulator<Layout, kKeys>& s, float scale,
                                      std::int64_t valid, float (&rescale)[kLaneRows]) {
    s.for_each([&](int, int, float& x) { x *= scale; });
    if (valid < kKeys) s.for_each([&](int, int key, float& x) { x = key < valid ? x : -INFINITY; });
    float highest[kLaneRows], sum[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      highest[r] = maximum[r];
      sum[r] = 0.0f;
    }
    s.for_each([&](int r, int, float& x) { highest[r] = fmaxf(highest[r], x); });
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      highest[r] = s.row_max(highest[r]);
      rescale[r] = exp2f(maximum[r] - highest[r]);
      maximum[r] = highest[r];
    }
    s.for_each([&](int r, int key, float& x) {
      x = exp2f(x - highest[r]);
      if (valid < kKeys && key >= valid) x = 0.0f;
      sum[r] += x;
    });
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) total[r] = total[r] * rescale[r] + s.row_sum(sum[r]);
  }
};

// Grid: ceil(N / kBlockRows) blocks for each head of each image.
template <class Atom, int D>
__global__ void __launch_bounds__(kThreads, 2) attention_forward_kernel(AttentionForward p) {
  using Memory = ForwardMemory<Atom, D>;
  using T = typename Atom::Type;
  using Layout = typename Atom::Layout;
  constexpr int kKeys = Memory::kKeys;
  const AttentionSizes& s = p.sizes;
  const Work work(ceil_div(s.queries, kBlockRows), s.heads);
  const std::int64_t first_query = work.tile * kBlockRows;
  const Rows<T> k = head_rows<T>(p.k, work, s.keys, s.head_dim);
  const Rows<T> v = head_rows<T>(p.v, work, s.keys, s.head_dim);

  Memory memory;
  typename Memory::KeyTiles tiles(memory.keys);
  const auto fetch = [&](std::int64_t tile) {
    tiles.fetch(tile, k, tile * kKeys, 0, v, tile * kKeys, 0);
  };
  fetch(0);
  typename Memory::QueryTile query_tile;
  query_tile.start(head_rows<T>(p.q, work, s.queries, s.head_dim), first_query, 0, memory.queries);
  query_tile.finish(memory.queries);
  T* queries = memory.queries + warp_index() * kWarpRows * Memory::kStride;

  OnlineSoftmax softmax;
  Accumulator<Layout, D> o;
  o.clear();
  const std::int64_t count = ceil_div(s.keys, kKeys);
  for (std::int64_t tile = 0; tile < count; ++tile) {
    tiles.wait(tile);
    if (tile + 1 < count) fetch(tile + 1);

    Accumulator<Layout, kKeys> weights;
    weights.clear();
    Atom::template multiply<kKeys, D, Stored::by_row, Stored::by_column>(
        weights, queries, Memory::kStride, tiles.first(tile), Memory::kStride, memory.scratch);
    float rescale[kLaneRows];
    softmax.add(weights, s.scale * kLog2e, s.keys - tile * kKeys, rescale);
    o.for_each([&](int r, int, float& x) { x *= rescale[r]; });
    Atom::template multiply_weights<D, kKeys>(o, weights, tiles.second(tile), Memory::kStride,
                                              memory.scratch);
  }

  const std::int64_t warp_query = first_query + warp_index() * kWarpRows;
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const std::int64_t query = warp_query + o.row(r);
    if (o.column(0, 0) == 0 && query < s.queries)
      ptx::store_global(p.lse + work.batch_head * s.queries + query,
                        (softmax.maximum[r] + log2f(softmax.total[r])) * kLn2);
  }
  o.for_each([&](int r, int, float& x) { x /= softmax.total[r]; });
  // each warp's queries are its own, and not needed any more once all its lanes are here
  __syncwarp();
  store_rows(o, queries, Memory::kStride);
  write_head_rows<D>(queries, p.o, work, s.queries, warp_query, s);
}

}  // namespace pvt_kernels::cuda
