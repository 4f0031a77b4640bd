// The launchers of attention, of which each family of architectures has its own: what the C
// functions check, the kernels' sources launch.
#pragma once

#include "cuda/attention.cuh"

namespace pvt_kernels::cuda {

struct KeyTiling;

struct AttentionForward {
  AttentionSizes sizes;
  pvtk_heads q, k, v;
  void* o;
  float* lse;
};

struct AttentionBackward {
  AttentionSizes sizes;
  pvtk_heads d_o, q, k, v, o;
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

// Of dk and dv; blocks.h has the type.
template <int kFamily>
KeyTiling dk_dv_tiling(pvtk_dtype dtype, std::int64_t head_dim);

template <int kFamily>
void launch_attention_forward(const pvtk_attention& call, const AttentionForward& p);

// dk and dv are the sums of p.partials, and their tokens dkv_stride values apart.
template <int kFamily>
void launch_attention_backward(const pvtk_attention& call, const AttentionBackward& p, void* dk,
                               void* dv, std::int64_t dkv_stride);

}  // namespace pvt_kernels::cuda
