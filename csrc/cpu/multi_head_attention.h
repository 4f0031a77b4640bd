#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/attention.h"
#include "cpu/spatial_reduction.h"

namespace pvt_kernels::cpu {

// x -> x weight^T + bias: weight (C_out, C_in), contiguous in the dtype; bias fp32 (C_out) or null.
struct Linear {
  const void* weight;
  const float* bias;
};

// Where the gradients go: like the weight, in the dtype, and fp32 (C_out).
struct LinearGradient {
  void* weight;
  float* bias;
};

// Attention of the tokens x (B, N, C) to the tokens y (B, M, C), C = heads * head_dim, with the
// projections around it.
struct MultiHeadAttention {
  AttentionSizes sizes;
  Tokens x, y;
  Linear q, kv, out;

  std::int64_t channels() const { return sizes.heads * sizes.head_dim; }
};

// result and o (B, N, C) and kv (B, M, 2C) in the dtype, lse (B, heads, N) fp32, all contiguous. o,
// which the out projection turns into the result, may be null.
using MultiHeadAttentionForward = void(const MultiHeadAttention& a, void* result, void* o, void* kv,
                                       float* lse, void* workspace);

// dx and dy in the dtype, contiguous. The result depends on the number of threads but not on their
// scheduling.
using MultiHeadAttentionBackward = void(const MultiHeadAttention& a, Tokens dresult, const void* o,
                                        const void* kv, const float* lse, void* dx, void* dy,
                                        LinearGradient q_gradient, LinearGradient kv_gradient,
                                        LinearGradient out_gradient, void* workspace);

}  // namespace pvt_kernels::cpu
