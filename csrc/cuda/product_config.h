// How the matrix products of the spatial reduction are cut.
#pragma once

namespace pvt_kernels::cuda {

// A tile is a block's, a quarter of it a warp's; the depth is taken in steps.
constexpr int kWarpTile = 32;  // rows and columns
constexpr int kProductRows = 2 * kWarpTile, kProductColumns = 2 * kWarpTile;
constexpr int kProductStep = 32;
// that a multiprocessor holds at least, of those whose depth is split
constexpr int kProductBlocks = 3;

}  // namespace pvt_kernels::cuda
