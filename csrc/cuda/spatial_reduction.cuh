// What the spatial reduction's kernels share: its sizes, and x as the matrix whose row is a patch.
#pragma once

#include "cuda/launch.h"
#include "cuda/product.cuh"

namespace pvt_kernels::cuda {

struct SpatialReductionSizes {
  int width, channels, sr_ratio;
  int patches_across, patches_per_image;
  int patches;  // of all images
  int depth;    // values of a patch, R * R * C
  float eps;
};

// Row m is patch m: its R rows of R tokens of C channels, one after the other, as they lie in x.
template <class T>
struct Patches {
  const T* data;
  std::int64_t batch_stride, token_stride;
  SpatialReductionSizes sizes;

  __device__ Patches(const pvtk_tokens& x, const SpatialReductionSizes& sizes)
      : data(static_cast<const T*>(x.data)),
        batch_stride(x.batch_stride),
        token_stride(x.token_stride),
        sizes(sizes) {}

  // Where the channel lies that is value `column` of patch `row`.
  __device__ __forceinline__ std::int64_t offset(int row, int column) const {
    const int image = row / sizes.patches_per_image, patch = row % sizes.patches_per_image;
    const int token = column / sizes.channels, channel = column % sizes.channels;
    const int y = patch / sizes.patches_across * sizes.sr_ratio + token / sizes.sr_ratio;
    const int x = patch % sizes.patches_across * sizes.sr_ratio + token % sizes.sr_ratio;
    return image * batch_stride + (std::int64_t{y} * sizes.width + x) * token_stride + channel;
  }

  __device__ __forceinline__ const T* at(std::int64_t row, std::int64_t column) const {
    if (row >= sizes.patches || column >= sizes.depth) return nullptr;
    return data + offset(static_cast<int>(row), static_cast<int>(column));
  }
  __device__ __forceinline__ const T* valid() const { return data; }
};

// A contiguous matrix as a source of tiles.
template <class T>
__device__ __forceinline__ Rows<T> matrix_rows(const void* data, std::int64_t rows, int columns) {
  return {static_cast<const T*>(data), columns, rows, columns};
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

}  // namespace pvt_kernels::cuda
