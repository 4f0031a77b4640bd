// What the spatial reduction's launchers share: the checks of a call, and how a sum is split.
#pragma once

#include <algorithm>

#include "cuda/dispatch.cuh"
#include "cuda/spatial_reduction.cuh"

namespace pvt_kernels::cuda {

constexpr std::int64_t kMaxChannels = 4096;

inline ReductionSizes checked_sizes(const pvtk_spatial_reduction& call) {
  const std::int64_t R = call.sr_ratio, C = call.channels;
  require(call.batch >= 0, "batch must not be negative, got " + std::to_string(call.batch));
  require(R >= 1, "sr_ratio must be at least 1, got " + std::to_string(R));
  require(call.height >= R, "height must be at least sr_ratio = " + std::to_string(R) + ", got " +
                                std::to_string(call.height));
  require(call.width >= R, "width must be at least sr_ratio = " + std::to_string(R) + ", got " +
                               std::to_string(call.width));
  require(C >= 8 && C <= kMaxChannels && C % 8 == 0,
          "channels must be a multiple of 8 up to 4096, got " + std::to_string(C));
  const std::int64_t across = call.width / R, per_image = call.height / R * across;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  require(
      call.height * call.width <= kMost && call.batch * per_image <= kMost && R <= kMost / R / C,
      "the tokens of an image, the patches and the values of a patch must each be below 2^31");
  return {static_cast<int>(call.width), static_cast<int>(C),
          static_cast<int>(R),          static_cast<int>(across),
          static_cast<int>(per_image),  static_cast<int>(call.batch * per_image),
          static_cast<int>(R * R * C),  call.eps};
}

inline void check_alignment(const pvtk_spatial_reduction& call, const char* name,
                            const pvtk_tokens& t) {
  const std::int64_t size = element_size(call.dtype);
  require(
      is_aligned(t.data) && (call.batch <= 1 || t.batch_stride * size % 16 == 0) &&
          (call.height * call.width == 1 || t.token_stride * size % 16 == 0),
      std::string(name) + " must have an address and strides (in bytes) that are multiples of 16");
}

inline std::int64_t product_tiles(std::int64_t rows, std::int64_t columns) {
  return ceil_div(rows, kProductRows) * ceil_div(columns, kProductColumns);
}

// How a product's depth is split so that the current device has two waves of blocks, of which a
// multiprocessor holds three.
struct Split {
  std::int64_t steps, count;

  Split(std::int64_t tiles, std::int64_t depth) {
    const std::int64_t all = std::max<std::int64_t>(1, ceil_div(depth, kProductStep));
    const std::int64_t wanted = ceil_div(6 * multiprocessors(), std::max<std::int64_t>(1, tiles));
    steps = ceil_div(all, std::min(wanted, all));
    count = ceil_div(all, steps);
  }
};

}  // namespace pvt_kernels::cuda
