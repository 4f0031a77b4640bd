// What sm75 and sm80 share: operands by ldmatrix, in the fragments of mma.m16n8k16 (PTX ISA,
// "Matrix Fragments for mma.m16n8k16 with floating point type"). Lane l holds, two neighbours in a
// register,
//   a[0], a[1]   rows l / 4 and l / 4 + 8, depths 2 * (l % 4) and the next
//   a[2], a[3]   the same rows, depths 8 further
//   b[0], b[1]   column l / 4, depths 2 * (l % 4) and the next; 8 further
// which is how ldmatrix deals out 8 x 8 matrices of 16-bit values.
#pragma once

#include "cuda/arch/accumulator.cuh"
#include "cuda/arch/ptx.cuh"

namespace pvt_kernels::cuda {

// c += a b, with a (16 x kDepth) row by row and b either (kDepth x kColumns) row by row or, if
// kTransposed, (kColumns x kDepth) row by row. mma(c, a, b0, b1) multiplies 16 x 8 x 16.
template <int kColumns, int kDepth, bool kTransposed, class T, class Mma>
__device__ __forceinline__ void multiply_by_mma_sync(Accumulator<kColumns>& c, const T* a,
                                                     int a_stride, const T* b, int b_stride,
                                                     Mma mma) {
  const int lane = lane_index();
  // the address that this lane gives: matrices 0 and 1 lie along a's rows or b's depth, 2 and 3
  // beside them
  a += lane % 16 * a_stride + lane / 16 * 8;
  b += kTransposed ? (lane / 16 * 8 + lane % 8) * b_stride + lane / 8 % 2 * 8
                   : lane % 16 * b_stride + lane / 16 * 8;
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    std::uint32_t a_part[4];
    ptx::load_matrices(a_part, a + depth);
#pragma unroll
    for (int column = 0; column < kColumns; column += 16) {
      std::uint32_t b_part[4];
      if constexpr (kTransposed)
        ptx::load_matrices(b_part, b + column * b_stride + depth);
      else
        ptx::load_matrices_transposed(b_part, b + depth * b_stride + column);
      mma(c.x[column / 8], a_part, b_part[0], b_part[1]);
      mma(c.x[column / 8 + 1], a_part, b_part[2], b_part[3]);
    }
  }
}

}  // namespace pvt_kernels::cuda
