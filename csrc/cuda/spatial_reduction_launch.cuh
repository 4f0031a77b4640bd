// The launchers of spatial reduction, of which each family of architectures has its own: what the C
// functions check, the kernels' sources launch.
#pragma once

#include "cuda/spatial_reduction.cuh"

namespace pvt_kernels::cuda {

struct SpatialReductionForward {
  SpatialReductionSizes sizes;
  pvtk_tokens x;
  const void* weight;  // (R * R * C, C_out)
  const void *bias, *norm_weight, *norm_bias;
  bool norm_in_fp32;  // its weight and bias; else in the dtype
  float* partials;    // (splits, B * M, C)
  void* y;
  float *normalized, *rstd;
  int splits, steps_per_split;
};

struct SpatialReductionBackward {
  SpatialReductionSizes sizes;
  const void* dy;
  pvtk_tokens x;
  std::int64_t dx_batch_stride;  // tokens of no patch included
  const void* weight;            // (R * R * C, C_out)
  const void* norm_weight;
  bool norm_in_fp32;
  const float *normalized, *rstd;
  void* dz;                 // (B * M, C)
  void* dx;                 // (B, H * W, C)
  bool adds;                // to what is in dx
  float* dweight_partials;  // (splits, R * R * C, C_out)
  int splits, steps_per_split;
  float* sum_partials;  // (sum_splits, 3, C)
  std::int64_t sum_splits, rows_per_sum;
};

template <int kFamily>
void launch_spatial_reduction_forward(const pvtk_spatial_reduction& call,
                                      const SpatialReductionForward& p);

// The outputs are sums of p.dweight_partials and p.sum_partials.
template <int kFamily>
void launch_spatial_reduction_backward(const pvtk_spatial_reduction& call,
                                       const SpatialReductionBackward& p, pvtk_dweight dweight,
                                       void* dbias, void* dnorm_weight, void* dnorm_bias);

}  // namespace pvt_kernels::cuda
