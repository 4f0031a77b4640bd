// A block's tile of a matrix product: 64 rows, 16 for each warp, by 64 columns.
#pragma once

#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

constexpr int kProductRows = kWarps * kWarpRows;
constexpr int kProductColumns = 64;
constexpr int kProductStep = 32;  // of the depth, at a time

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
  static constexpr int kScratchBytes = Atom::scratch_bytes(0);
  static constexpr int kBytes = Tiles::kSize * sizeof(T) + kWarps * kScratchBytes;
  using Result = Accumulator<typename Atom::Layout, kProductColumns>;

  // The warp's 16 rows of the tile at `row` and `column`, over steps `begin` to `end` of the depth.
  template <class SourceA, class SourceB>
  static __device__ __forceinline__ Result tile(const SourceA& a, const SourceB& b,
                                                std::int64_t row, std::int64_t column,
                                                std::int64_t begin, std::int64_t end) {
    T* shared = reinterpret_cast<T*>(shared_memory);
    unsigned char* scratch = reinterpret_cast<unsigned char*>(shared + Tiles::kSize);
    scratch += warp_index() * kScratchBytes;
    Tiles tiles(shared);
    const auto fetch = [&](std::int64_t step) {
      const std::int64_t depth = step * kProductStep;
      tiles.fetch(step, a, kA == Stored::by_row ? row : depth, kA == Stored::by_row ? depth : row,
                  b, kB == Stored::by_row ? depth : column, kB == Stored::by_row ? column : depth);
    };
    Result c;
    c.clear();
    if (begin < end) fetch(begin);
    for (std::int64_t step = begin; step < end; ++step) {
      tiles.wait(step);
      if (step + 1 < end) fetch(step + 1);
      const int warp_row = warp_index() * kWarpRows;
      Atom::template multiply<kProductColumns, kProductStep, kA, kB>(
          c, tiles.first(step) + (kA == Stored::by_row ? warp_row * CopyA::kStride : warp_row),
          CopyA::kStride, tiles.second(step), CopyB::kStride, scratch);
    }
    return c;
  }
};

// Which tile of a product a block computes, and which share of the depth. Blocks are numbered along
// columns first: those that run at the same time read the same rows, of the larger operand.
struct ProductWork {
  std::int64_t row, column, split;

  __device__ ProductWork(std::int64_t rows, std::int64_t columns) {
    const std::int64_t row_tiles = ceil_div(rows, kProductRows);
    const std::int64_t column_tiles = ceil_div(columns, kProductColumns);
    column = blockIdx.x % column_tiles * kProductColumns;
    row = blockIdx.x / column_tiles % row_tiles * kProductRows;
    split = blockIdx.x / column_tiles / row_tiles;
  }
};

// Writes the block's tile of a contiguous fp32 matrix (rows x columns), columns even.
template <class Layout>
__device__ __forceinline__ void write_partial(const Accumulator<Layout, kProductColumns>& c,
                                              const ProductWork& work, float* matrix,
                                              std::int64_t rows, std::int64_t columns) {
  c.for_each_pair([&](int row, int column, float first, float second) {
    const std::int64_t i = work.row + warp_index() * kWarpRows + row, j = work.column + column;
    if (i < rows && j < columns)
      ptx::store_global(reinterpret_cast<float2*>(matrix + i * columns + j),
                        make_float2(first, second));
  });
}

}  // namespace pvt_kernels::cuda
