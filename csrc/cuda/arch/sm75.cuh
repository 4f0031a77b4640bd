// fp16 on compute capability 7.5: mma.m16n8k8 twice in place of m16n8k16, whose fragments are
// those of two m16n8k8 side by side (PTX ISA, "Matrix Fragments for mma.m16n8k8").
#pragma once

#include "cuda/arch/mma_sync.cuh"

namespace pvt_kernels::cuda {

struct Sm75 : MmaSync<Sm75, half> {
  static constexpr bool kCopiesAsync = false;

  static __device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
    ptx::mma_m16n8k8(c, a[0], a[1], b0);
    ptx::mma_m16n8k8(c, a[2], a[3], b1);
  }
};

}  // namespace pvt_kernels::cuda
