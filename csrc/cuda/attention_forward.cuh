// Attention forward, query-stationary: a block's queries stay while tiles of keys and values pass,
// with the online softmax of Milakov and Gimelshein (2018).
#pragma once

#include "cuda/attention.cuh"

namespace pvt_kernels::cuda {

struct AttentionForward {
  AttentionSizes sizes;
  pvtk_heads q, k, v;
  void* o;
  float* lse;
};

template <class Atom, int D>
struct ForwardMemory {
  using T = typename Atom::Type;
  static constexpr int kKeys = forward_step<Atom>(D);
  using QueryTile = TileCopy<T, kBlockRows, D, false>;
  static constexpr int kStride = QueryTile::kStride;
  using KeyTile = TileCopy<T, kKeys, D, Atom::kCopiesAsync>;
  using KeyTiles = TilePairs<KeyTile, KeyTile>;
  static constexpr int kWeightStride = padded_stride<T>(kKeys);
  static constexpr int kBytes =
      (QueryTile::kSize + KeyTiles::kSize + kBlockRows * kWeightStride) * sizeof(T) +
      kWarps * Atom::kScratchFloats * sizeof(float);

  T *queries, *keys, *weights;
  float* scratch;

  // The parts of the calling thread's warp, and the keys that all share.
  __device__ ForwardMemory() {
    queries = reinterpret_cast<T*>(shared_memory);
    keys = queries + QueryTile::kSize;
    weights = keys + KeyTiles::kSize;
    scratch = reinterpret_cast<float*>(weights + kBlockRows * kWeightStride);
    weights += warp_index() * kWarpRows * kWeightStride;
    scratch += warp_index() * Atom::kScratchFloats;
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
  template <int kKeys>
  __device__ __forceinline__ void add(Accumulator<kKeys>& s, float scale, std::int64_t valid,
                                      float (&rescale)[kLaneRows]) {
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
      highest[r] = row_max(highest[r]);
      rescale[r] = exp2f(maximum[r] - highest[r]);
      maximum[r] = highest[r];
    }
    s.for_each([&](int r, int key, float& x) {
      x = exp2f(x - highest[r]);
      if (valid < kKeys && key >= valid) x = 0.0f;
      sum[r] += x;
    });
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) total[r] = total[r] * rescale[r] + row_sum(sum[r]);
  }
};

// Grid: ceil(N / kBlockRows) blocks for each head of each image.
template <class Atom, int D>
__global__ void __launch_bounds__(kThreads, 2) attention_forward_kernel(AttentionForward p) {
  if constexpr (is_compiled<Atom>()) {
    using Memory = ForwardMemory<Atom, D>;
    using T = typename Atom::Type;
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
    query_tile.start(head_rows<T>(p.q, work, s.queries, s.head_dim), first_query, 0,
                     memory.queries);
    query_tile.finish(memory.queries);
    T* queries = memory.queries + warp_index() * kWarpRows * Memory::kStride;

    OnlineSoftmax softmax;
    Accumulator<D> o;
    o.clear();
    const std::int64_t count = ceil_div(s.keys, kKeys);
    for (std::int64_t tile = 0; tile < count; ++tile) {
      tiles.wait(tile);
      if (tile + 1 < count) fetch(tile + 1);

      Accumulator<kKeys> weights;
      weights.clear();
      Atom::template multiply<kKeys, D, Stored::by_row, Stored::by_column>(
          weights, queries, Memory::kStride, tiles.first(tile), Memory::kStride, memory.scratch);
      float rescale[kLaneRows];
      softmax.add(weights, s.scale * kLog2e, s.keys - tile * kKeys, rescale);
      o.for_each([&](int r, int, float& x) { x *= rescale[r]; });
      store_rows(weights, memory.weights, Memory::kWeightStride);
      Atom::template multiply<D, kKeys, Stored::by_row, Stored::by_row>(
          o, memory.weights, Memory::kWeightStride, tiles.second(tile), Memory::kStride,
          memory.scratch);
      __syncwarp();
    }

    const std::int64_t warp_query = first_query + warp_index() * kWarpRows;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const std::int64_t query = warp_query + o.row(r);
      if (lane_index() % 4 == 0 && query < s.queries)
        ptx::store_global(p.lse + work.unit * s.queries + query,
                          (softmax.maximum[r] + log2f(softmax.total[r])) * kLn2);
    }
    o.for_each([&](int r, int, float& x) { x /= softmax.total[r]; });
    // each warp's queries are its own, and not needed any more
    store_rows(o, queries, Memory::kStride);
    write_rows<T, D>(queries, static_cast<T*>(p.o) + row_offset(work, s.queries, warp_query, s),
                     std::int64_t{s.heads} * s.head_dim, s.queries - warp_query, s.head_dim);
  }
}

}  // namespace pvt_kernels::cuda
