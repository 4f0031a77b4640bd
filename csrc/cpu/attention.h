#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/dtype.h"

namespace pvt_kernels::cpu {

// A (B, N, heads, d) tensor. Strides are in elements and may be 0; the channels of one head lie
// side by side.
struct Heads {
  const void* data;
  std::int64_t batch_stride, token_stride, head_stride;
};

struct AttentionSizes {
  std::int64_t batch, queries, keys, heads, head_dim;
  DType dtype;
  float scale;
  int threads;
};

// Bytes of scratch memory for all threads; the caller allocates it, 64-byte aligned.
std::size_t attention_forward_workspace(const AttentionSizes& sizes);
std::size_t attention_backward_workspace(const AttentionSizes& sizes);

// o (B, N, heads, d) in the dtype and lse (B, heads, N), contiguous.
void attention_forward(const AttentionSizes& sizes, Heads q, Heads k, Heads v, void* o, float* lse,
                       void* workspace);

// dq (B, N, heads, d), dk and dv (B, M, heads, d) in the dtype, contiguous. The result depends on
// the number of threads but not on their scheduling.
void attention_backward(const AttentionSizes& sizes, Heads d_o, Heads q, Heads k, Heads v, Heads o,
                        const float* lse, void* dq, void* dk, void* dv, void* workspace);

}  // namespace pvt_kernels::cpu
