// The convolution's weight in the orders that its products read, tile by tile, so that both the
// reads and the writes are of neighbours.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/spatial_reduction.h"
#include "cpu/vec.h"

namespace pvt_kernels::cpu {
namespace {

// A weight is (C_out, C_in, R, R): a row of R * R * C_in values for each output channel. In a
// patch the value at k = (c_in, r) stands at (r, c_in) instead.
inline std::int64_t patch_order(const SpatialReductionSizes& s, std::int64_t k) {
  const std::int64_t area = s.sr_ratio * s.sr_ratio;
  return k % area * s.channels + k / area;
}

// kLanes rows of matrix (R, R, C_in, C_out padded to whole vectors), those of k = first and on.
template <class T>
void weight_to_matrix(const SpatialReductionSizes& s, const typename T::Storage* weight,
                      std::int64_t first, float* matrix) {
  const std::int64_t channels = padded_channels(s.channels);
  const std::int64_t count = std::min<std::int64_t>(kLanes, s.depth() - first);
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    float tile[kLanes * kLanes] = {}, turned[kLanes * kLanes];
    for (std::int64_t i = 0; i < std::min<std::int64_t>(kLanes, s.channels - c); ++i)
      for (std::int64_t j = 0; j < count; ++j)
        tile[i * kLanes + j] = T::to_float(weight[(c + i) * s.depth() + first + j]);
    transpose(tile, kLanes, turned, kLanes);
    for (std::int64_t j = 0; j < count; ++j)
      store(matrix + patch_order(s, first + j) * channels + c, load(turned + j * kLanes));
  }
}

// The reverse of weight_to_matrix, for the same values of k.
template <class T>
void matrix_to_weight(const SpatialReductionSizes& s, const float* matrix, std::int64_t first,
                      typename T::Storage* weight) {
  const std::int64_t channels = padded_channels(s.channels);
  const std::int64_t count = std::min<std::int64_t>(kLanes, s.depth() - first);
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    float tile[kLanes * kLanes] = {}, turned[kLanes * kLanes];
    for (std::int64_t j = 0; j < count; ++j)
      store(tile + j * kLanes, load(matrix + patch_order(s, first + j) * channels + c));
    transpose(tile, kLanes, turned, kLanes);
    for (std::int64_t i = 0; i < std::min<std::int64_t>(kLanes, s.channels - c); ++i)
      for (std::int64_t j = 0; j < count; ++j)
        weight[(c + i) * s.depth() + first + j] = T::from_float(turned[i * kLanes + j]);
  }
}

// One output channel's row in the order of a patch, (R, R, C_in); zeros after it.
template <class T>
void weight_to_patch_order(const SpatialReductionSizes& s, const typename T::Storage* weight,
                           std::int64_t channel, float* row) {
  const std::int64_t area = s.sr_ratio * s.sr_ratio;
  const auto* from = weight + channel * s.depth();
  for (std::int64_t c = 0; c < s.channels; c += kLanes) {
    const std::int64_t rows = std::min<std::int64_t>(kLanes, s.channels - c);
    for (std::int64_t r = 0; r < area; r += kLanes) {
      const std::int64_t count = std::min<std::int64_t>(kLanes, area - r);
      float tile[kLanes * kLanes] = {}, turned[kLanes * kLanes];
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < count; ++j)
          tile[i * kLanes + j] = T::to_float(from[(c + i) * area + r + j]);
      transpose(tile, kLanes, turned, kLanes);
      for (std::int64_t j = 0; j < count; ++j)
        std::copy(turned + j * kLanes, turned + j * kLanes + rows, row + (r + j) * s.channels + c);
    }
  }
  std::fill(row + s.depth(), row + s.reordered_stride(), 0.0f);
}

}  // namespace
}  // namespace pvt_kernels::cpu
