#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/dtype.h"

namespace pvt_kernels::cpu {

// Tokens x (B, H*W, C), row-major over (H, W), with adjacent channels; strides in elements.
struct Tokens {
  const void* data;
  std::int64_t batch_stride, token_stride;
};

struct SpatialReductionSizes {
  std::int64_t batch, height, width, channels, sr_ratio;
  DType dtype;
  float eps;
  int threads;

  std::int64_t patches_across() const { return width / sr_ratio; }
  std::int64_t patches_per_image() const { return height / sr_ratio * patches_across(); }
  std::int64_t patches() const { return batch * patches_per_image(); }
  // values of one patch, R * R * C
  std::int64_t depth() const { return sr_ratio * sr_ratio * channels; }
};

// Bytes of scratch memory for all threads; the caller allocates it, 64-byte aligned.
using SpatialReductionWorkspace = std::size_t(const SpatialReductionSizes& sizes);

// y (B, M, C) in the dtype; the normalised rows (B, M, C) and rstd (B, M) in fp32.
// `weight` is the convolution's, contiguous (C_out, C_in, R, R) in the dtype; bias, norm_weight
// and norm_bias are fp32 (C).
using SpatialReductionForward = void(const SpatialReductionSizes& sizes, Tokens x,
                                     const void* weight, const float* bias,
                                     const float* norm_weight, const float* norm_bias, void* y,
                                     float* normalized, float* rstd, void* workspace);

// dx (B, H*W, C) in the dtype, where tokens of no patch are left as they are; dweight like weight;
// dbias, dnorm_weight and dnorm_bias fp32 (C). dy is contiguous, in the dtype. The result does not
// depend on the number of threads.
using SpatialReductionBackward = void(const SpatialReductionSizes& sizes, const void* dy, Tokens x,
                                      const void* weight, const float* norm_weight,
                                      const float* normalized, const float* rstd, void* dx,
                                      void* dweight, float* dbias, float* dnorm_weight,
                                      float* dnorm_bias, void* workspace);

}  // namespace pvt_kernels::cpu
