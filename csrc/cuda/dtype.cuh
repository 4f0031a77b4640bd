// What tensors are stored in, and its way to and from fp32, in which everything accumulates.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "cuda/arch/ptx.cuh"

namespace pvt_kernels::cuda {

// Not CUDA's own type, whose functions older toolkits declare for some architectures only.
struct bf16 {
  std::uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(std::uint32_t{x.bits} << 16);
}

// What one 16-byte access moves.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T x[kSize];
};

// Two neighbours, which every accumulator layout holds side by side.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x[2];
};

// What a thread handles of four fp32 numbers' worth.
template <class T>
struct alignas(4 * sizeof(T)) Quad {
  Pair<T> x[2];
};

template <class T>
__device__ __forceinline__ Pair<T> round_pair(float first, float second);
template <>
__device__ __forceinline__ Pair<float> round_pair(float first, float second) {
  return {{first, second}};
}
template <>
__device__ __forceinline__ Pair<half> round_pair(float first, float second) {
  const half2 both = __floats2half2_rn(first, second);  // one instruction where there is one
  return {{__low2half(both), __high2half(both)}};
}
template <>
__device__ __forceinline__ Pair<bf16> round_pair(float first, float second) {
  const std::uint32_t bits = ptx::round_to_bf16x2(first, second);
  return {{{static_cast<std::uint16_t>(bits)}, {static_cast<std::uint16_t>(bits >> 16)}}};
}

template <class T>
__device__ __forceinline__ Quad<T> round_quad(float4 x) {
  return {{round_pair<T>(x.x, x.y), round_pair<T>(x.z, x.w)}};
}

template <class T>
__device__ __forceinline__ float4 to_float(const Quad<T>& x) {
  return make_float4(to_float(x.x[0].x[0]), to_float(x.x[0].x[1]), to_float(x.x[1].x[0]),
                     to_float(x.x[1].x[1]));
}

}  // namespace pvt_kernels::cuda
