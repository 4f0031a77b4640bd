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

// c += a b for a of 16 x kDepth and b of kDepth x kColumns.
template <int kColumns, int kDepth, Stored kA, Stored kB, class T, class Mma>
__device__ __forceinline__ void multiply_by_mma_sync(Accumulator<kColumns>& c, const T* a,
                                                     int a_stride, const T* b, int b_stride,
                                                     Mma mma) {
  // The address that this lane gives: two matrices side by side in the direction in which a
  // fragment goes on first, and two beside them.
  const int in_eight = lane_index() % 8;
  const int first = lane_index() / 8 % 2 * 8, second = lane_index() / 16 * 8;
  // a goes on along rows first, b along depths
  a += kA == Stored::by_row ? (first + in_eight) * a_stride + second
                            : (second + in_eight) * a_stride + first;
  b += kB == Stored::by_row ? (first + in_eight) * b_stride + second
                            : (second + in_eight) * b_stride + first;
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    std::uint32_t a_part[4];
    if constexpr (kA == Stored::by_row)
      ptx::load_matrices(a_part, a + depth);
    else
      ptx::load_matrices_transposed(a_part, a + depth * a_stride);
#pragma unroll
    for (int column = 0; column < kColumns; column += 16) {
      std::uint32_t b_part[4];
      if constexpr (kB == Stored::by_row)
        ptx::load_matrices_transposed(b_part, b + depth * b_stride + column);
      else
        ptx::load_matrices(b_part, b + column * b_stride + depth);
      mma(c.x[column / 8], a_part, b_part[0], b_part[1]);
      mma(c.x[column / 8 + 1], a_part, b_part[2], b_part[3]);
    }
  }
}

}  // namespace pvt_kernels::cuda
