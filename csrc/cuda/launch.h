// The CUDA kernels as plain C functions, for any language: pointers to device memory, sizes,
// strides in elements, a dtype, a device and a stream. Each call only enqueues work on the stream.
// Nothing is allocated; where a call needs scratch memory, a function says how many bytes. Every
// address is a multiple of 16.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define PVTK_API __declspec(dllexport)
#else
#define PVTK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  PVTK_OK = 0,
  PVTK_INVALID_ARGUMENT = 1,
  PVTK_NOT_SUPPORTED = 2,  // the device, or this build's code for it, lacks what the call needs
  PVTK_CUDA_ERROR = 3,
} pvtk_code;

typedef struct {
  pvtk_code code;
  char message[252];  // empty for PVTK_OK
} pvtk_status;

typedef enum { PVTK_FLOAT32 = 0, PVTK_FLOAT16 = 1, PVTK_BFLOAT16 = 2 } pvtk_dtype;

// A (B, N, heads, d) tensor whose channels d lie side by side. The address and, in bytes, the
// strides of dimensions longer than 1 are multiples of 16.
typedef struct {
  const void* data;
  int64_t batch_stride, token_stride, head_stride;
} pvtk_heads;

typedef struct {
  int64_t batch, queries, keys, heads;
  int64_t head_dim;  // a multiple of 8, up to 128
  pvtk_dtype dtype;  // bfloat16 from compute capability 8.0 on
  float scale;
  int device;    // index in the CUDA runtime's order
  void* stream;  // a cudaStream_t of that device
} pvtk_attention;

// On compute capability 7.0 and 7.2 float16 is multiplied by mma.m8n8k4, and with
// PVT_KERNELS_SM70_WMMA=1 in the environment by nvcuda::wmma.

// o (B, N, heads, d) in the dtype and lse (B, heads, N) in fp32, both contiguous: softmax(q k^T *
// scale) v and the natural logarithm of the sum of the scores' exponentials.
PVTK_API pvtk_status pvtk_attention_forward(const pvtk_attention* call, pvtk_heads q, pvtk_heads k,
                                            pvtk_heads v, void* o, float* lse);

// Bytes of scratch memory that the backward needs.
PVTK_API pvtk_status pvtk_attention_backward_workspace(const pvtk_attention* call, size_t* bytes);

// dq (B, N, heads, d), dk and dv (B, M, heads, d) in the dtype, contiguous; the same bits in every
// run on the same kind of device.
PVTK_API pvtk_status pvtk_attention_backward(const pvtk_attention* call, pvtk_heads d_o,
                                             pvtk_heads q, pvtk_heads k, pvtk_heads v, pvtk_heads o,
                                             const float* lse, void* dq, void* dk, void* dv,
                                             void* workspace);

// A (B, H*W, C) tensor, row-major over (H, W), whose channels lie side by side. The address and, in
// bytes, the strides of dimensions longer than 1 are multiples of 16.
typedef struct {
  const void* data;
  int64_t batch_stride, token_stride;
} pvtk_tokens;

typedef struct {
  int64_t batch, height, width;
  int64_t channels;  // a multiple of 8, up to 4096
  int64_t sr_ratio;
  pvtk_dtype dtype;  // bfloat16 from compute capability 8.0 on
  float eps;         // of the LayerNorm
  int device;        // index in the CUDA runtime's order
  void* stream;      // a cudaStream_t of that device
} pvtk_spatial_reduction;

// Bytes of scratch memory that the forward needs.
PVTK_API pvtk_status pvtk_spatial_reduction_forward_workspace(const pvtk_spatial_reduction* call,
                                                              size_t* bytes);

// y (B, M, C) in the dtype, M = (H / R) * (W / R); the normalised rows (B, M, C) and rstd (B, M) in
// fp32; all contiguous. `weight` is (R, R, C_in, C_out), contiguous, in the dtype; bias,
// norm_weight and norm_bias are fp32 (C).
PVTK_API pvtk_status pvtk_spatial_reduction_forward(const pvtk_spatial_reduction* call,
                                                    pvtk_tokens x, const void* weight,
                                                    const float* bias, const float* norm_weight,
                                                    const float* norm_bias, void* y,
                                                    float* normalized, float* rstd,
                                                    void* workspace);

// Bytes of scratch memory that the backward needs.
PVTK_API pvtk_status pvtk_spatial_reduction_backward_workspace(const pvtk_spatial_reduction* call,
                                                               size_t* bytes);

// dx (B, H*W, C) in the dtype, where tokens of no patch are left as they are; dweight like weight;
// dbias, dnorm_weight and dnorm_bias fp32 (C). dy is contiguous, in the dtype. The same bits in
// every run on the same kind of device.
PVTK_API pvtk_status pvtk_spatial_reduction_backward(
    const pvtk_spatial_reduction* call, const void* dy, pvtk_tokens x, const void* weight,
    const float* norm_weight, const float* normalized, const float* rstd, void* dx, void* dweight,
    float* dbias, float* dnorm_weight, float* dnorm_bias, void* workspace);

#ifdef __cplusplus
}
#endif
