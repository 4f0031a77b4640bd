// What the kernels of spatial reduction take, and their plans, of which each family of
// architectures has its own: what the C functions check, the kernels' sources fit to the current
// device.
#pragma once

#include "cuda/launch.h"
#include "cuda/spatial_reduction.cuh"

namespace pvt_kernels::cuda {

struct PlanParts;

struct SpatialReductionForward {
  SpatialReductionSizes sizes;
  Tokens x{};
  const void* weight = nullptr;  // (R * R * C, C_out)
  const void *bias = nullptr, *norm_weight = nullptr, *norm_bias = nullptr;
  bool norm_in_fp32 = false;  // its weight and bias; else in the dtype
  float* partials = nullptr;  // (splits, B * M, C)
  void* y = nullptr;
  float *normalized = nullptr, *rstd = nullptr;
  int splits = 0, steps_per_split = 0;
};

struct SpatialReductionBackward {
  SpatialReductionSizes sizes;
  const void* dy = nullptr;
  Tokens x{};
  std::int64_t dx_batch_stride = 0;  // tokens of no patch included
  const void* weight = nullptr;      // (R * R * C, C_out)
  const void* norm_weight = nullptr;
  bool norm_in_fp32 = false;
  const float *normalized = nullptr, *rstd = nullptr;
  void* dz = nullptr;                 // (B * M, C)
  void* dx = nullptr;                 // (B, H * W, C)
  bool adds = false;                  // to what is in dx
  float* dweight_partials = nullptr;  // (splits, R * R * C, C_out)
  int splits = 0, steps_per_split = 0;
  float* sum_partials = nullptr;  // (sum_splits, 3, C)
  std::int64_t sum_splits = 0, rows_per_sum = 0;
};

// Of `p` sizes and strides are given.
template <int kFamily>
PlanParts plan_spatial_reduction_forward(const pvtk_spatial_reduction& call,
                                         const SpatialReductionForward& p, bool saves);

// What p.adds and the sizes say, too.
template <int kFamily>
PlanParts plan_spatial_reduction_backward(const pvtk_spatial_reduction& call,
                                          const SpatialReductionBackward& p,
                                          const pvtk_weight_strides& dweight);

}  // namespace pvt_kernels::cuda
