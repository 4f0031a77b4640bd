// A block's tile of a matrix product: 64 rows by 64 columns, a quarter for each of four warps.
#pragma once

#include "cuda/product_config.h"
#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

// The warp's quarter of the block's tile.
__device__ __forceinline__ int warp_row() { return warp_index() / 2 * kWarpTile; }
__device__ __forceinline__ int warp_column() { return warp_index() % 2 * kWarpTile; }

// a (rows x depth) times b (depth x columns), each from a source that is stored in this order.
template <class Atom, Stored kA, Stored kB>
class Product {
  using T = typename Atom::Type;
  template <Stored kStored, int kRows, int kColumns>
  using Copy = TileCopy<T, kStored == Stored::by_row ? kRows : kColumns,
                        kStored == Stored::by_row ? kColumns : kRows, Atom::kCopiesAsync>;
  using CopyA = Copy<kA, kProductRows, kProductStep>;
  using CopyB = Copy<kB, kProductStep, kProductColumns>;
  using Tiles = TilePairs<CopyA, CopyB>;

 public:
  static constexpr int kScratchBytes = Atom::scratch_bytes(kWarpTile, 0);
  static constexpr int kBytes = Tiles::kSize * sizeof(T) + kWarps * kScratchBytes;
  using Result = Accumulator<typename Atom::Layout, kWarpTile, kWarpTile>;

  // The warp's quarter of the tile at `row` and `column`, over steps `begin` to `end` of the depth.
  template <class SourceA, class SourceB>
  static __device__ __forceinline__ Result tile(const SourceA& a, const SourceB& b, int row,
                                                int column, int begin, int end) {
    T* shared = reinterpret_cast<T*>(shared_memory);
    unsigned char* scratch = reinterpret_cast<unsigned char*>(shared + Tiles::kSize);
    scratch += warp_index() * kScratchBytes;
    Tiles tiles(shared);
    const auto fetch = [&](int step) {
      const int depth = step * kProductStep;
      tiles.fetch(step, a, kA == Stored::by_row ? row : depth, kA == Stored::by_row ? depth : row,
                  b, kB == Stored::by_row ? depth : column, kB == Stored::by_row ? column : depth);
    };
    const int first_a = warp_row() * (kA == Stored::by_row ? CopyA::kStride : 1);
    const int first_b = warp_column() * (kB == Stored::by_row ? 1 : CopyB::kStride);
    Result c;
    c.clear();
    if (begin < end) fetch(begin);
    for (int step = begin; step < end; ++step) {
      tiles.wait(step);
      if (step + 1 < end) fetch(step + 1);
      Atom::template multiply<kProductStep, kA, kB>(c, tiles.first(step) + first_a, CopyA::kStride,
                                                    tiles.second(step) + first_b, CopyB::kStride,
                                                    scratch);
    }
    return c;
  }
};

// Which tile of a product a block computes, and which share of the depth. Blocks are numbered along
// columns first: those that run at the same time read the same rows, of the larger operand.
struct ProductWork {
  int row, column, split;

  __device__ ProductWork(int rows, int columns) {
    const unsigned row_tiles = ceil_div(rows, kProductRows);
    const unsigned column_tiles = ceil_div(columns, kProductColumns);
    column = blockIdx.x % column_tiles * kProductColumns;
    row = blockIdx.x / column_tiles % row_tiles * kProductRows;
    split = blockIdx.x / column_tiles / row_tiles;
  }
};

// Writes the warp's quarter into a contiguous fp32 matrix (rows x columns), columns even.
template <class Layout>
__device__ __forceinline__ void write_partial(const Accumulator<Layout, kWarpTile, kWarpTile>& c,
                                              const ProductWork& work, float* matrix, int rows,
                                              int columns) {
  c.for_each_pair([&](int row, int column, float first, float second) {
    const int i = work.row + warp_row() + row, j = work.column + warp_column() + column;
    if (i < rows && j < columns)
      ptx::store_global(reinterpret_cast<float2*>(matrix + std::int64_t{i} * columns + j),
                        make_float2(first, second));
  });
}

}  // namespace pvt_kernels::cuda
