// What the kernels of attention take, and their plans, of which each family of architectures has
// its own: what the C functions check, the kernels' sources fit to the current device.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/launch.h"

namespace pvt_kernels::cuda {

struct PlanParts;

struct AttentionForward {
  AttentionSizes sizes;
  Heads q, k, v;
  void* o;
  float* lse;
};

struct AttentionBackward {
  AttentionSizes sizes;
  Heads d_o, q, k, v, o;
  const float* lse;
  float* delta;  // (B, heads, N)
  // of attention_dq_dk_dv_kernel: the next block's number, then how far each warp of each block is
  unsigned* progress;
  std::int64_t progress_words;
  float* partials;  // (splits, 2, B, M, heads, d): dk and dv of each split
  void* dq;
  int batch;
  int splits, steps_per_split;  // of the queries, in tiles of KeyTiling::queries
};

// Of `p` sizes and strides are given.
template <int kFamily>
PlanParts plan_attention_forward(const pvtk_attention& call, const AttentionForward& p, bool saves);

template <int kFamily>
PlanParts plan_attention_backward(const pvtk_attention& call, const AttentionBackward& p,
                                  std::int64_t dkv_stride);

}  // namespace pvt_kernels::cuda
