// Attention forward, query-stationary: a block's queries stay while tiles of keys and values pass,
// with the online softmax of Milakov and Gimelshein (2018).
#pragma once

#include <cfloat>

#include "cuda/attention_config.cuh"
#include "cuda/attention_launch.cuh"

namespace pvt_kernels::cuda {

template <class Atom, int D>
struct ForwardMemory {
  using T = typename Atom::Type;
  using Tiling = typename Config<Atom, D>::Forward;
  using QueryTile = TileCopy<T, Tiling::kRows, D, false, Tiling::kThreads>;
  static constexpr int kStride = QueryTile::kStride;
  using KeyTile = TileCopy<T, Tiling::kStep, D, Atom::kCopiesAsync, Tiling::kThreads>;
  using KeyTiles = TilePairs<KeyTile, KeyTile>;
  static constexpr int kScratchBytes = Atom::scratch_bytes(Tiling::kWarpRows, Tiling::kStep);
  static constexpr int kBytes =
      (QueryTile::kSize + KeyTiles::kSize) * sizeof(T) + Tiling::kWarps * kScratchBytes;

  T *queries, *keys;
  unsigned char* scratch;

  __device__ ForwardMemory() {
    queries = reinterpret_cast<T*>(shared_memory);
    keys = queries + QueryTile::kSize;
    scratch = reinterpret_cast<unsigned char*>(keys + KeyTiles::kSize);
    scratch += warp_index() * kScratchBytes;
  }
};

// The running maximum of a warp's rows, to base 2, and a lane's part of their sums; each lane sees
// the rows that it holds a part of.
template <int kLaneRows>
struct OnlineSoftmax {
  float maximum[kLaneRows], total[kLaneRows];

  __device__ OnlineSoftmax() {
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      maximum[r] = -INFINITY;
      total[r] = 0.0f;
    }
  }

  // Turns scores, which a positive scale takes to base 2, into weights relative to the new maximum,
  // and sets `rescale` to what earlier results have to be multiplied by. Keys from `valid` on count
  // for nothing.
  template <class Layout, int kRows, int kKeys>
  __device__ __forceinline__ void add(Accumulator<Layout, kRows, kKeys>& s, float scale, int valid,
                                      float (&rescale)[kLaneRows]) {
    if (valid < kKeys) s.for_each([&](int, int key, float& x) { x = key < valid ? x : -INFINITY; });
    float highest[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) highest[r] = -INFINITY;
    s.for_each([&](int r, int, float& x) { highest[r] = fmaxf(highest[r], x); });
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      highest[r] = fmaxf(maximum[r], s.row_max(highest[r]) * scale);
      rescale[r] = ptx::exp2(maximum[r] - highest[r]);
      maximum[r] = highest[r];
      total[r] *= rescale[r];
    }
    s.for_each([&](int r, int, float& x) {
      x = ptx::exp2(fmaf(x, scale, -highest[r]));
      total[r] += x;
    });
  }
};

// Grid: ceil(N / Tiling::kRows) blocks for each head of each image.
template <class Atom, int D>
__global__ void __launch_bounds__(Config<Atom, D>::Forward::kThreads,
                                  Config<Atom, D>::Forward::kBlocks)
    attention_forward_kernel(AttentionForward p) {
  using Memory = ForwardMemory<Atom, D>;
  using Tiling = typename Memory::Tiling;
  using T = typename Atom::Type;
  constexpr int kKeys = Tiling::kStep, kWarpRows = Tiling::kWarpRows;
  using Output = Accumulator<typename Atom::Layout, kWarpRows, D>;
  using Weights = Accumulator<typename Atom::Layout, kWarpRows, kKeys>;
  const AttentionSizes& s = p.sizes;
  const Work work(blockIdx.x, ceil_div(s.queries, Tiling::kRows), s.heads);
  const int first_query = work.tile * Tiling::kRows;
  const Rows<T> k = head_rows<T>(p.k, work, s.keys, s.head_dim);
  const Rows<T> v = head_rows<T>(p.v, work, s.keys, s.head_dim);

  Memory memory;
  typename Memory::KeyTiles tiles(memory.keys);
  const auto fetch = [&](int tile) { tiles.fetch(tile, k, tile * kKeys, 0, v, tile * kKeys, 0); };
  fetch(0);
  typename Memory::QueryTile query_tile;
  query_tile.start(head_rows<T>(p.q, work, s.queries, s.head_dim), first_query, 0, memory.queries);
  // the queries take the scale's sign, so that the highest score has the largest weight
  if (s.scale < 0) query_tile.negate();
  query_tile.finish(memory.queries);
  T* queries = memory.queries + warp_index() * kWarpRows * Memory::kStride;

  // of 0, so much that the score of a key that isn't there stays -inf
  const float scale = fmaxf(fabsf(s.scale) * kLog2e, FLT_MIN);
  OnlineSoftmax<Output::kLaneRows> softmax;
  Output o;
  o.clear();
  const int count = ceil_div(s.keys, kKeys);
  for (int tile = 0; tile < count; ++tile) {
    tiles.wait(tile);
    if (tile + 1 < count) fetch(tile + 1);

    Weights weights;
    weights.clear();
    Atom::template multiply<D, Stored::by_row, Stored::by_column>(
        weights, queries, Memory::kStride, tiles.first(tile), Memory::kStride, memory.scratch);
    float rescale[Output::kLaneRows];
    softmax.add(weights, scale, s.keys - tile * kKeys, rescale);
    o.for_each([&](int r, int, float& x) { x *= rescale[r]; });
    Atom::multiply_weights(o, weights, tiles.second(tile), Memory::kStride, memory.scratch);
  }

  const int warp_query = first_query + warp_index() * kWarpRows;
  float inverse[Output::kLaneRows];
#pragma unroll
  for (int r = 0; r < Output::kLaneRows; ++r) {
    const float total = o.row_sum(softmax.total[r]);
    inverse[r] = 1.0f / total;
    const int query = warp_query + o.row(r);
    // rounded once: what is lost here, all probabilities of the row get wrong in the backward
    if (o.column(0, 0) == 0 && query < s.queries) {
      const double base2 = softmax.maximum[r] + log2(static_cast<double>(total));
      ptx::store_global(p.lse + query_offset(work, query, s),
                        static_cast<float>(base2 / static_cast<double>(kLog2e)));
    }
  }
  o.for_each([&](int r, int, float& x) { x *= inverse[r]; });
  // each warp's queries are its own, and not needed any more once all its lanes are here
  __syncwarp();
  store_rows(o, queries, Memory::kStride);
  write_head_rows<kWarpRows, D>(queries, p.o, work, s.queries, warp_query, s);
}

}  // namespace pvt_kernels::cuda
