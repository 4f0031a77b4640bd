// What the spatial reduction's kernels share: its sizes, and x as the matrix whose row is a patch.
#pragma once

#include "cuda/product.cuh"

namespace pvt_kernels::cuda {

// Divides numbers from 0 to 2^31 - 1 by one that is known before the launch, by a multiplication
// (Granlund and Montgomery, 1994): with 2^s >= divisor, m = ceil(2^(31 + s) / divisor) exceeds
// 2^(31 + s) / divisor by less than 2^s / divisor <= 2 parts of 2^(31 + s), too little to matter.
struct Divisor {
  int divisor;
  std::uint32_t multiplier;
  int shift;

  explicit Divisor(int divisor) : divisor(divisor), shift(31) {
    while ((std::uint64_t{1} << (shift - 31)) < static_cast<std::uint64_t>(divisor)) ++shift;
    multiplier = static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + divisor - 1) / divisor);
  }

  struct Result {
    int quotient, remainder;
  };
  __host__ __device__ __forceinline__ Result operator()(int number) const {
    const auto product = static_cast<std::uint64_t>(number) * multiplier;
    const int quotient = static_cast<int>(product >> shift);
    return {quotient, number - quotient * divisor};
  }
};

struct SpatialReductionSizes {
  int width, channels, sr_ratio;
  int patches_across, patches_per_image;
  int patches;  // of all images
  int depth;    // values of a patch, R * R * C
  float eps;
  Divisor by_channels{channels}, by_sr_ratio{sr_ratio};
  Divisor by_patches_across{patches_across}, by_patches_per_image{patches_per_image};
};

// A (B, H*W, C) tensor with adjacent channels.
struct Tokens {
  const void* data;
  std::int64_t batch_stride, token_stride;
};

// Row m is patch m: its R rows of R tokens of C channels, one after the other, as they lie in x.
template <class T>
struct Patches {
  const T* data;
  std::int64_t batch_stride, token_stride;
  SpatialReductionSizes sizes;

  __device__ Patches(const Tokens& x, const SpatialReductionSizes& sizes)
      : data(static_cast<const T*>(x.data)),
        batch_stride(x.batch_stride),
        token_stride(x.token_stride),
        sizes(sizes) {}

  // From a patch's first value to its value `column`.
  __device__ __forceinline__ std::int64_t within(int column) const {
    const auto [token, channel] = sizes.by_channels(column);
    const auto [y, x] = sizes.by_sr_ratio(token);
    return (std::int64_t{y} * sizes.width + x) * token_stride + channel;
  }

  // To the first value of patch `row`.
  __device__ __forceinline__ std::int64_t first(int row) const {
    const auto [image, patch] = sizes.by_patches_per_image(row);
    const auto [y, x] = sizes.by_patches_across(patch);
    return image * batch_stride +
           (std::int64_t{y} * sizes.width + x) * sizes.sr_ratio * token_stride;
  }

  // 16 bytes of each patch from one on.
  struct Column {
    const Patches& patches;
    const T* data;
    int row, count;

    // Of the patch `down` further; null where there are zeros.
    __device__ __forceinline__ const T* at(int down) const {
      return down < count ? data + patches.first(row + down) : nullptr;
    }
  };

  __device__ __forceinline__ Column from(int row, int column) const {
    return {*this, data + within(column), row, column < sizes.depth ? sizes.patches - row : 0};
  }
  __device__ __forceinline__ const T* valid() const { return data; }
};

// A contiguous matrix as a source of tiles.
template <class T>
__device__ __forceinline__ Rows<T> matrix_rows(const void* data, int rows, int columns) {
  return {static_cast<const T*>(data), columns, rows, columns};
}

// Four adjacent values of a vector in fp32 or in T.
template <class T>
__device__ __forceinline__ float4 vector_quad(const void* vector, bool in_fp32, int first) {
  if (in_fp32)
    return ptx::load_global(
        reinterpret_cast<const float4*>(static_cast<const float*>(vector) + first));
  return to_float(
      ptx::load_global(reinterpret_cast<const Quad<T>*>(static_cast<const T*>(vector) + first)));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

}  // namespace pvt_kernels::cuda
