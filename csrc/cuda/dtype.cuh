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

template <class T>
__device__ __forceinline__ Pair<T> round_pair(float first, float second);
template <>
__device__ __forceinline__ Pair<float> round_pair(float first, float second) {
  return {{first, second}};
}
template <>
__device__ __forceinline__ Pair<half> round_pair(float first, float second) {
  return {{__float2half_rn(first), __float2half_rn(second)}};
}
template <>
__device__ __forceinline__ Pair<bf16> round_pair(float first, float second) {
  const std::uint32_t bits = ptx::round_to_bf16x2(first, second);
  return {{{static_cast<std::uint16_t>(bits)}, {static_cast<std::uint16_t>(bits >> 16)}}};
}

}  // namespace pvt_kernels::cuda
