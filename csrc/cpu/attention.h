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

// `batch_head` counts the heads of all images: batch * heads + head.
struct AttentionSizes {
  std::int64_t batch, queries, keys, heads, head_dim;
  DType dtype;
  float scale;
  int threads;
};

// What is added along the way; either may be null.
struct Biases {
  // (B, heads, M): to all of a key's scores, before the scale
  const float* keys;
  // (heads * d): to the result
  const float* result;
};

// Bytes of scratch memory for all threads; the caller allocates it, 64-byte aligned.
using AttentionWorkspace = std::size_t(const AttentionSizes& sizes);

// o and result (B, N, heads, d) in the dtype and lse (B, heads, N), contiguous. `o` is what the
// backward needs, without the result's bias; either of the two may be null.
using AttentionForward = void(const AttentionSizes& sizes, Heads q, Heads k, Heads v, Biases biases,
                              void* o, void* result, float* lse, void* workspace);

// dq (B, N, heads, d), dk and dv (B, M, heads, d) in the dtype, and dkey_bias (B, heads, M) if it
// is not null; contiguous. The result depends on the number of threads but not on their scheduling.
using AttentionBackward = void(const AttentionSizes& sizes, Heads d_o, Heads q, Heads k, Heads v,
                               const float* key_bias, Heads o, const float* lse, void* dq, void* dk,
                               void* dv, float* dkey_bias, void* workspace);

}  // namespace pvt_kernels::cpu
