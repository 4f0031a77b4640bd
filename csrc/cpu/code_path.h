// The kernels are compiled once for each code path, with that path's flags, into the namespace
// that PVT_KERNELS_CODE_PATH names; dispatch.cpp calls the one for the CPU at hand.
#pragma once

#include "cpu/attention.h"
#include "cpu/multi_head_attention.h"
#include "cpu/spatial_reduction.h"

#define PVT_KERNELS_DECLARE_CODE_PATH(path)                                                        \
  namespace pvt_kernels::cpu::path {                                                               \
  std::size_t attention_forward_workspace(const AttentionSizes& sizes);                            \
  std::size_t attention_backward_workspace(const AttentionSizes& sizes);                           \
  void attention_forward(const AttentionSizes& sizes, Heads q, Heads k, Heads v, Biases biases,    \
                         void* o, void* result, float* lse, void* workspace);                      \
  void attention_backward(const AttentionSizes& sizes, Heads d_o, Heads q, Heads k, Heads v,       \
                          const float* key_bias, Heads o, const float* lse, void* dq, void* dk,    \
                          void* dv, float* dkey_bias, void* workspace);                            \
  std::size_t spatial_reduction_forward_workspace(const SpatialReductionSizes& sizes);             \
  std::size_t spatial_reduction_backward_workspace(const SpatialReductionSizes& sizes);            \
  void spatial_reduction_forward(const SpatialReductionSizes& sizes, Tokens x, const void* weight, \
                                 const float* bias, const float* norm_weight,                      \
                                 const float* norm_bias, void* y, float* normalized, float* rstd,  \
                                 void* workspace);                                                 \
  void spatial_reduction_backward(const SpatialReductionSizes& sizes, const void* dy, Tokens x,    \
                                  const void* weight, const float* norm_weight,                    \
                                  const float* normalized, const float* rstd, void* dx,            \
                                  void* dweight, float* dbias, float* dnorm_weight,                \
                                  float* dnorm_bias, void* workspace);                             \
  std::size_t multi_head_attention_forward_workspace(const AttentionSizes& sizes);                 \
  std::size_t multi_head_attention_backward_workspace(const AttentionSizes& sizes);                \
  void multi_head_attention_forward(const MultiHeadAttention& a, void* result, void* o, void* kv,  \
                                    float* lse, void* workspace);                                  \
  void multi_head_attention_backward(const MultiHeadAttention& a, Tokens dresult, const void* o,   \
                                     const void* kv, const float* lse, void* dx, void* dy,         \
                                     LinearGradient dq, LinearGradient dkv, LinearGradient dout,   \
                                     void* workspace);                                             \
  }

PVT_KERNELS_DECLARE_CODE_PATH(portable)
#if defined(__x86_64__)
PVT_KERNELS_DECLARE_CODE_PATH(avx2)
PVT_KERNELS_DECLARE_CODE_PATH(avx512)
PVT_KERNELS_DECLARE_CODE_PATH(avx512_bf16)
#endif
