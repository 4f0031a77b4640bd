// How many blocks the kernels have, and into how many parts their long sums are split. Plain C++,
// which a build without CUDA has too: it takes sizes and tiles, and no GPU.
#pragma once

#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/product_config.h"
#include "splits.h"

namespace pvt_kernels::cuda {

inline std::int64_t tiles_of(std::int64_t size, std::int64_t tile) {
  return (size + tile - 1) / tile;
}

inline std::int64_t product_tiles(std::int64_t rows, std::int64_t columns) {
  return tiles_of(rows, kProductRows) * tiles_of(columns, kProductColumns);
}

// A V100's peak by its memory's bandwidth, as its data sheet has them. Newer GPUs compute up to
// twice as much; the number of splits differs little.
inline double operations_a_byte(pvtk_dtype dtype) { return dtype == PVTK_FLOAT32 ? 17 : 140; }

// Of sums of some steps: of each split, and splits.
struct Split {
  int steps, count;

  explicit Split(const LongSums& sums) {
    const std::int64_t all = std::max<std::int64_t>(1, sums.steps);
    steps = static_cast<int>(tiles_of(all, splits_of(sums)));
    count = static_cast<int>(tiles_of(all, steps));
  }
};

// How many keys a block of dk and dv keeps, how many queries pass by at a time, how many blocks a
// multiprocessor holds, and whether they compute dq too.
struct KeyTiling {
  int keys, queries, blocks;
  bool with_dq;
};

inline Split dk_dv_split(const pvtk_attention& call, const KeyTiling& tiling, int multiprocessors) {
  const std::int64_t units = call.batch * call.heads;
  const double products = tiling.with_dq ? 5 : 4;
  return Split({multiprocessors * tiling.blocks, tiles_of(call.keys, tiling.keys) * units,
                tiles_of(call.queries, tiling.queries),
                products * tiling.keys * tiling.queries * call.head_dim,
                2.0 * units * call.keys * call.head_dim, operations_a_byte(call.dtype)});
}

inline Split product_split(std::int64_t rows, std::int64_t columns, std::int64_t depth,
                           pvtk_dtype dtype, int multiprocessors) {
  return Split({multiprocessors * kProductBlocks, product_tiles(rows, columns),
                tiles_of(depth, kProductStep), 1.0 * kProductRows * kProductColumns * kProductStep,
                1.0 * rows * columns, operations_a_byte(dtype)});
}

struct KernelBlocks {
  std::string kernel;   // as it is called, without _kernel
  std::int64_t blocks;  // of the grid
  int resident;         // that a multiprocessor holds, at least
};

// Of the kernels with products on a V100 of so many multiprocessors, whose number alone differs
// among them. `reduction` may be null. bfloat16 throws std::invalid_argument.
std::vector<KernelBlocks> blocks_on_a_v100(const pvtk_attention& attention,
                                           const pvtk_spatial_reduction* reduction,
                                           int multiprocessors);

}  // namespace pvt_kernels::cuda
