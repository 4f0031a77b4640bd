// fp16 and bf16 from compute capability 8.0 on: mma.m16n8k16 and cp.async.
#pragma once

#include <type_traits>

#include "cuda/arch/mma_sync.cuh"

namespace pvt_kernels::cuda {

template <class T>
struct Sm80 {
  using Type = T;
  static constexpr int kFirstArch = 80, kLastArch = 999;
  static constexpr bool kCopiesAsync = true;
  static constexpr int kScratchFloats = 0;

  template <int kColumns, int kDepth, Stored kA, Stored kB>
  static __device__ __forceinline__ void multiply(Accumulator<kColumns>& c, const T* a,
                                                  int a_stride, const T* b, int b_stride, float*) {
    multiply_by_mma_sync<kColumns, kDepth, kA, kB>(
        c, a, a_stride, b, b_stride,
        [](float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
          if constexpr (std::is_same_v<T, half>)
            ptx::mma_m16n8k16_f16(c, a, b0, b1);
          else
            ptx::mma_m16n8k16_bf16(c, a, b0, b1);
        });
  }
};

}  // namespace pvt_kernels::cuda
