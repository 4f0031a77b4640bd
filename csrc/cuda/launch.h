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

// dq (B, N, heads, d), dk and dv (B, M, heads, d) in the dtype, contiguous but for the tokens of dk
// and of dv, which are dkv_stride elements apart, in bytes a multiple of 16; the same bits in every
// run on the same kind of device.
PVTK_API pvtk_status pvtk_attention_backward(const pvtk_attention* call, pvtk_heads d_o,
                                             pvtk_heads q, pvtk_heads k, pvtk_heads v, pvtk_heads o,
                                             const float* lse, void* dq, void* dk, void* dv,
                                             int64_t dkv_stride, void* workspace);

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
  pvtk_dtype dtype;       // bfloat16 from compute capability 8.0 on
  pvtk_dtype norm_dtype;  // of the LayerNorm's weight and bias: the dtype or PVTK_FLOAT32
  float eps;              // of the LayerNorm
  int device;             // index in the CUDA runtime's order
  void* stream;           // a cudaStream_t of that device
} pvtk_spatial_reduction;

// Bytes of scratch memory that the forward needs.
PVTK_API pvtk_status pvtk_spatial_reduction_forward_workspace(const pvtk_spatial_reduction* call,
                                                              size_t* bytes);

// y (B, M, C) in the dtype, M = (H / R) * (W / R); the normalised rows (B, M, C) and rstd (B, M) in
// fp32; all contiguous. `weight` is (R, R, C_in, C_out), contiguous, in the dtype; bias (C) in the
// dtype; norm_weight and norm_bias (C) in norm_dtype.
PVTK_API pvtk_status pvtk_spatial_reduction_forward(const pvtk_spatial_reduction* call,
                                                    pvtk_tokens x, const void* weight,
                                                    const void* bias, const void* norm_weight,
                                                    const void* norm_bias, void* y,
                                                    float* normalized, float* rstd,
                                                    void* workspace);

// Bytes of scratch memory that the backward needs.
PVTK_API pvtk_status pvtk_spatial_reduction_backward_workspace(const pvtk_spatial_reduction* call,
                                                               size_t* bytes);

// The gradients in the dtypes of what they are of, contiguous but for dweight, whose value for
// weight (r, c_in, c_out), r of the R * R, is r * dweight.patch + c_in * dweight.in + c_out *
// dweight.out elements from its first. To dx (B, H*W, C) they are added where `add` is not 0;
// tokens of no patch are left as they are. dy is contiguous, in the dtype. The same bits in every
// run on the same kind of device.
typedef struct {
  void* data;
  int64_t patch, in, out;
} pvtk_dweight;
PVTK_API pvtk_status pvtk_spatial_reduction_backward(
    const pvtk_spatial_reduction* call, const void* dy, pvtk_tokens x, const void* weight,
    const void* norm_weight, const float* normalized, const float* rstd, void* dx, int add,
    pvtk_dweight dweight, void* dbias, void* dnorm_weight, void* dnorm_bias, void* workspace);

typedef enum { PVTK_GELU = 0, PVTK_RELU = 1 } pvtk_activation;

// A window of the feed-forward network's hidden layer: so many rows of each image, computed from
// these rows with `before` more above and `after` below, beyond which is the map's edge. A hidden
// layer is (images, rows, width, hidden), contiguous. Without a convolution tokens have no
// neighbours.
typedef struct {
  int64_t images, rows, width, before, after;
  int64_t above, below;  // of the rows, how many at both ends are computed for what lies between
  int64_t hidden;        // channels, a multiple of 8
  int convolved;
  pvtk_activation activation;
  int relu_before_conv;
  pvtk_dtype dtype;  // bfloat16 from compute capability 8.0 on
  int device;        // index in the CUDA runtime's order
  void* stream;      // a cudaStream_t of that device
} pvtk_hidden;

// a = activation(conv(h) + bias) of the window. `weight` is (hidden, 1, 3, 3) and bias (hidden) or
// null, contiguous, all in the dtype.
PVTK_API pvtk_status pvtk_hidden_forward(const pvtk_hidden* call, const void* h, const void* weight,
                                         const void* bias, void* a);

// How many parts the sums over the window have: (parts, 11, hidden) in fp32, of the gradients of
// the weight's 9 taps, of its bias and of h; without a convolution (parts, 1, hidden), of h alone.
PVTK_API pvtk_status pvtk_hidden_parts(const pvtk_hidden* call, int64_t* parts);

// The gradient of the activation's input, in `dc`, from that of its result, which is there; of all
// but `above` and `below` rows also a, and what they add to the sums but for the last. Without a
// convolution a is h, in whose place the activation comes, and adds to the one sum. The same bits
// in every run on the same kind of device.
PVTK_API pvtk_status pvtk_hidden_dc(const pvtk_hidden* call, const void* h, const void* weight,
                                    const void* bias, void* dc, void* a, float* sums);

// The gradient of h in its place, of the window from dc with what is around it, and what it adds to
// the last of the sums.
PVTK_API pvtk_status pvtk_hidden_dh(const pvtk_hidden* call, const void* dc, const void* weight,
                                    void* h, float* sums);

#ifdef __cplusplus
}
#endif
