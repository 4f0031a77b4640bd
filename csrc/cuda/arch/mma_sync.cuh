// What sm75 and sm80 share: operands in the fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments
// for mma.m16n8k16 with floating point type"), by ldmatrix from shared memory or out of an
// Accumulator. Lane l holds, two neighbours in a register,
//   a[0], a[1]   rows l / 4 and l / 4 + 8, depths 2 * (l % 4) and the next
//   a[2], a[3]   the same rows, depths 8 further
//   b[0], b[1]   column l / 4, depths 2 * (l % 4) and the next; 8 further
// which is how ldmatrix deals out 8 x 8 matrices of 16-bit values.
#pragma once

#include "cuda/arch/accumulator.cuh"
#include "cuda/arch/ptx.cuh"

namespace pvt_kernels::cuda {

// `Atom` has mma(c, a, b0, b1), for 8 columns.
template <class Atom, class T>
struct MmaSync {
  using Type = T;
  using Layout = Rows16;

  static __host__ __device__ constexpr int scratch_bytes(int, int) { return 0; }

  template <int kDepth, Stored kA, Stored kB, int kRows, int kColumns>
  static __device__ __forceinline__ void multiply(Accumulator<Layout, kRows, kColumns>& c,
                                                  const T* a, int a_stride, const T* b,
                                                  int b_stride, unsigned char*) {
    a += address<kA == Stored::by_row>(a_stride);
    b += address<kB == Stored::by_row>(b_stride);
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 16) {
      std::uint32_t a_part[kRows / kBandRows][4];
#pragma unroll
      for (int band = 0; band < kRows / kBandRows; ++band) {
        const int row = band * kBandRows;
        if constexpr (kA == Stored::by_row)
          ptx::load_matrices(a_part[band], a + row * a_stride + depth);
        else
          ptx::load_matrices_transposed(a_part[band], a + depth * a_stride + row);
      }
      multiply_step<kB>(c, a_part, b, b_stride, depth);
    }
  }

  // An Accumulator's two neighbours are those that an operand's register holds.
  template <int kRows, int kColumns, int kDepth>
  static __device__ __forceinline__ void multiply_weights(
      Accumulator<Layout, kRows, kColumns>& c, const Accumulator<Layout, kRows, kDepth>& weights,
      const T* b, int b_stride, unsigned char*) {
    b += address<true>(b_stride);
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 16) {
      std::uint32_t a_part[kRows / kBandRows][4];
#pragma unroll
      for (int band = 0; band < kRows / kBandRows; ++band)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = weights.x[band][depth / 8 + i / 2] + i % 2 * 2;
          a_part[band][i] = round_to_register<T>(pair[0], pair[1]);
        }
      multiply_step<Stored::by_row>(c, a_part, b, b_stride, depth);
    }
  }

 private:
  // The address that this lane gives to ldmatrix: two matrices side by side in the direction in
  // which a fragment goes on first, and two beside them. a goes on along rows first, b along
  // depths.
  template <bool kFirstDownRows>
  static __device__ __forceinline__ int address(int stride) {
    const int in_eight = lane_index() % 8;
    const int first = lane_index() / 8 % 2 * 8, second = lane_index() / 16 * 8;
    return kFirstDownRows ? (first + in_eight) * stride + second
                          : (second + in_eight) * stride + first;
  }

  template <Stored kB, int kRows, int kColumns>
  static __device__ __forceinline__ void multiply_step(
      Accumulator<Layout, kRows, kColumns>& c, const std::uint32_t (&a_part)[kRows / kBandRows][4],
      const T* b, int b_stride, int depth) {
#pragma unroll
    for (int column = 0; column < kColumns; column += 16) {
      std::uint32_t b_part[4];
      if constexpr (kB == Stored::by_row)
        ptx::load_matrices_transposed(b_part, b + depth * b_stride + column);
      else
        ptx::load_matrices(b_part, b + column * b_stride + depth);
#pragma unroll
      for (int band = 0; band < kRows / kBandRows; ++band) {
        Atom::mma(c.x[band][column / 8], a_part[band], b_part[0], b_part[1]);
        Atom::mma(c.x[band][column / 8 + 1], a_part[band], b_part[2], b_part[3]);
      }
    }
  }
};

}  // namespace pvt_kernels::cuda
