// fp16 and bf16 from compute capability 8.0 on: mma.m16n8k16 and cp.async.
#pragma once

#include <type_traits>

#include "cuda/arch/mma_sync.cuh"

namespace pvt_kernels::cuda {

template <class T>
struct Sm80 : MmaSync<Sm80<T>, T> {
  static constexpr bool kCopiesAsync = true;

  static __device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
    if constexpr (std::is_same_v<T, half>)
      ptx::mma_m16n8k16_f16(c, a, b0, b1);
    else
      ptx::mma_m16n8k16_bf16(c, a, b0, b1);
  }
};

}  // namespace pvt_kernels::cuda
