// The CUDA kernels as plain C functions, for any language. What depends on sizes, strides, dtypes
// and a device is found once and kept in a plan; a launch of it takes pointers to device memory and
// a stream, on which it enqueues work, and does nothing else. Nothing is allocated on a device:
// where a launch needs scratch memory, the plan says how much. Strides are in elements; every
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
  char message[508];  // empty for PVTK_OK
} pvtk_status;

// What a function launches for calls that differ in addresses and streams alone. It is constant, so
// that threads may launch it side by side.
typedef struct pvtk_plan pvtk_plan;

// Bytes of scratch memory that a launch needs.
PVTK_API size_t pvtk_plan_workspace(const pvtk_plan* plan);

// Enqueues the plan's kernels on a stream, a cudaStream_t of its device. The addresses are those
// that the function which made the plan names, in that order; the last one, that of the scratch
// memory, may be null where none is needed. An error names the kernel.
PVTK_API pvtk_status pvtk_plan_launch(const pvtk_plan* plan, void* stream, void* const* addresses,
                                      size_t count);

// May be null.
PVTK_API void pvtk_plan_destroy(pvtk_plan* plan);

typedef enum { PVTK_FLOAT32 = 0, PVTK_FLOAT16 = 1, PVTK_BFLOAT16 = 2 } pvtk_dtype;

// Of a (B, N, heads, d) tensor whose channels d lie side by side. In bytes those of dimensions
// longer than 1 are multiples of 16.
typedef struct {
  int64_t batch, token, head;
} pvtk_head_strides;

typedef struct {
  int64_t batch, queries, keys, heads;
  int64_t head_dim;  // a multiple of 8, up to 128
  pvtk_dtype dtype;  // bfloat16 from compute capability 8.0 on
  float scale;
  int device;  // index in the CUDA runtime's order
} pvtk_attention;

// On compute capability 7.0 and 7.2 float16 is multiplied by mma.m8n8k4, and where
// PVT_KERNELS_SM70_WMMA was 1 in the environment when the plan was made, by nvcuda::wmma.

// softmax(q k^T * scale) v. Addresses: q, k, v; o (B, N, heads, d) in the dtype; with `saves` also
// lse (B, heads, N) in fp32, the natural logarithm of the sum of the scores' exponentials;
// workspace. o and lse are contiguous.
PVTK_API pvtk_status pvtk_plan_attention_forward(const pvtk_attention* call, pvtk_head_strides q,
                                                 pvtk_head_strides k, pvtk_head_strides v,
                                                 int saves, pvtk_plan** plan);

// Addresses: do, q, k, v, o, lse; dq (B, N, heads, d), dk and dv (B, M, heads, d) in the dtype;
// workspace. The gradients are contiguous but for the tokens of dk and of dv, which are dkv_stride
// elements apart, in bytes a multiple of 16. The same bits in every run on the same kind of device.
PVTK_API pvtk_status pvtk_plan_attention_backward(const pvtk_attention* call, pvtk_head_strides d_o,
                                                  pvtk_head_strides q, pvtk_head_strides k,
                                                  pvtk_head_strides v, pvtk_head_strides o,
                                                  int64_t dkv_stride, pvtk_plan** plan);

// Of a (B, H*W, C) tensor, row-major over (H, W), whose channels lie side by side. In bytes those
// of dimensions longer than 1 are multiples of 16.
typedef struct {
  int64_t batch, token;
} pvtk_token_strides;

typedef struct {
  int64_t batch, height, width;
  int64_t channels;  // a multiple of 8, up to 4096
  int64_t sr_ratio;
  pvtk_dtype dtype;       // bfloat16 from compute capability 8.0 on
  pvtk_dtype norm_dtype;  // of the LayerNorm's weight and bias: the dtype or PVTK_FLOAT32
  float eps;              // of the LayerNorm
  int device;             // index in the CUDA runtime's order
} pvtk_spatial_reduction;

// LayerNorm(convolution(x)). Addresses: x; weight (R, R, C_in, C_out) and bias (C) in the dtype;
// norm_weight and norm_bias (C) in norm_dtype; y (B, M, C) in the dtype, M = (H / R) * (W / R);
// with `saves` also the normalised rows (B, M, C) and rstd (B, M) in fp32; workspace. All but x are
// contiguous.
PVTK_API pvtk_status pvtk_plan_spatial_reduction_forward(const pvtk_spatial_reduction* call,
                                                         pvtk_token_strides x, int saves,
                                                         pvtk_plan** plan);

// Of a gradient of the weight: its value for weight (r, c_in, c_out), r of the R * R, is r * patch
// + c_in * in + c_out * out elements from its first.
typedef struct {
  int64_t patch, in, out;
} pvtk_weight_strides;

// Addresses: dy in the dtype, x, weight, norm_weight, the normalised rows, rstd; dx (B, H*W, C),
// dweight, dbias, dnorm_weight, dnorm_bias, in the dtypes of what they are of; workspace. All but x
// and dweight are contiguous. With `adds` dx is added to what is there; tokens of no patch are left
// as they are. The same bits in every run on the same kind of device.
PVTK_API pvtk_status pvtk_plan_spatial_reduction_backward(const pvtk_spatial_reduction* call,
                                                          pvtk_token_strides x,
                                                          pvtk_weight_strides dweight, int adds,
                                                          pvtk_plan** plan);

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
} pvtk_hidden;

// a = activation(conv(h) + bias) of the window. Addresses: h; weight (hidden, 1, 3, 3) and bias
// (hidden) or null, contiguous; a; workspace. All in the dtype.
PVTK_API pvtk_status pvtk_plan_hidden_forward(const pvtk_hidden* call, pvtk_plan** plan);

// How many parts the sums over the window have: (parts, 11, hidden) in fp32, of the gradients of
// the weight's 9 taps, of its bias and of h; without a convolution (parts, 1, hidden), of h alone.
PVTK_API pvtk_status pvtk_hidden_parts(const pvtk_hidden* call, int64_t* parts);

// Addresses: h, weight, bias, dc, a, sums; workspace. The gradient of the activation's input, in
// `dc`, from that of its result, which is there; of all but `above` and `below` rows also a, and
// what they add to the sums but for the last. Without a convolution a is h, in whose place the
// activation comes, and adds to the one sum. The same bits in every run on the same kind of device.
PVTK_API pvtk_status pvtk_plan_hidden_dc(const pvtk_hidden* call, pvtk_plan** plan);

// Addresses: dc, weight, h, sums; workspace. The gradient of h in its place, of the window from dc
// with what is around it, and what it adds to the last of the sums.
PVTK_API pvtk_status pvtk_plan_hidden_dh(const pvtk_hidden* call, pvtk_plan** plan);

#ifdef __cplusplus
}
#endif
