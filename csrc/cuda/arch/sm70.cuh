// fp16 on compute capability 7.0 and 7.2: mma.m8n8k4 (PTX ISA, "Matrix Fragments for mma.m8n8k4
// with .f16 floating point type"). The instruction multiplies in four quad pairs at a time, of
// lanes 4p to 4p + 3 and 16 more each, 8 x 4 by 4 x 8 in every one. The quad pairs share a band's
// 16 rows and 16 of its columns, two by two: pair p has the 4 rows from 4 * (p / 2) on and those 8
// further, the 4 columns from 4 * (p % 2) on and those 8 further. So 8 lanes in turn read 8
// adjacent columns or 4 adjacent rows, without a bank conflict, and lane l holds
//   a   row 4 * (l / 8) + l % 4, 4 depths; or depth l % 4, the 4 rows from 4 * (l / 8) on
//   b   column 8 * (l / 16) + l % 8, 4 depths; or depth l % 4, 4 columns from 8 * (l / 16) + l % 8
//   / 4 * 4 c   rows 4 * (l / 8) + l % 2 and 2 further, columns l % 8 / 2 * 2 and the next of every
//   8
#pragma once

#include "cuda/arch/accumulator.cuh"
#include "cuda/arch/ptx.cuh"

namespace pvt_kernels::cuda {

struct QuadPairs {
  static constexpr int kFirstMate = 2, kSecondMate = 4;

  static __device__ __forceinline__ int row(int lane_row) {
    return lane_index() / 8 * 4 + lane_index() % 2 + 2 * lane_row;
  }
  static __device__ __forceinline__ int column() { return lane_index() % 8 / 2 * 2; }
};

struct Sm70 {
  using Type = half;
  using Layout = QuadPairs;
  static constexpr bool kCopiesAsync = false;

  static __host__ __device__ constexpr int scratch_bytes(int, int) { return 0; }

  template <int kDepth, Stored kA, Stored kB, int kRows, int kColumns>
  static __device__ __forceinline__ void multiply(Accumulator<Layout, kRows, kColumns>& c,
                                                  const half* a, int a_stride, const half* b,
                                                  int b_stride, unsigned char*) {
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 8) {
      std::uint32_t a_part[kRows / kBandRows][2][2];
#pragma unroll
      for (int band = 0; band < kRows / kBandRows; ++band)
        load<kA == Stored::by_row>(a_part[band], a, a_stride, band * kBandRows + first_row(),
                                   depth);
      multiply_step<kA, kB>(c, a_part, b, b_stride, depth);
    }
  }

  template <int kRows, int kColumns, int kDepth>
  static __device__ __forceinline__ void multiply_weights(
      Accumulator<Layout, kRows, kColumns>& c, const Accumulator<Layout, kRows, kDepth>& weights,
      const half* b, int b_stride, unsigned char*) {
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 8) {
      std::uint32_t a_part[kRows / kBandRows][2][2];
#pragma unroll
      for (int band = 0; band < kRows / kBandRows; ++band)
        to_operand(a_part[band], weights.x[band][depth / 8]);
      multiply_step<Stored::by_row, Stored::by_row>(c, a_part, b, b_stride, depth);
    }
  }

 private:
  static __device__ __forceinline__ int first_row() { return lane_index() / 8 * 4; }
  static __device__ __forceinline__ int first_column() {
    return lane_index() / 16 * 8 + lane_index() % 8 / 4 * 4;
  }

  // The operands of two steps of 4 depths, for the 4 rows of a (columns of b) from `first` on,
  // which four lanes share: 4 depths of one of them each, or all of them at one depth.
  template <bool kDepthsAdjacent>
  static __device__ __forceinline__ void load(std::uint32_t (&part)[2][2], const half* matrix,
                                              int stride, int first, int depth) {
    const int in_four = lane_index() % 4;
    if constexpr (kDepthsAdjacent) {
      const uint4 both = ptx::load_shared(
          reinterpret_cast<const uint4*>(matrix + (first + in_four) * stride + depth));
      part[0][0] = both.x;
      part[0][1] = both.y;
      part[1][0] = both.z;
      part[1][1] = both.w;
    } else {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint2 one = ptx::load_shared(
            reinterpret_cast<const uint2*>(matrix + (depth + 4 * step + in_four) * stride + first));
        part[step][0] = one.x;
        part[step][1] = one.y;
      }
    }
  }

  template <Stored kA, Stored kB, int kRows, int kColumns>
  static __device__ __forceinline__ void multiply_step(
      Accumulator<Layout, kRows, kColumns>& c,
      const std::uint32_t (&a_part)[kRows / kBandRows][2][2], const half* b, int b_stride,
      int depth) {
#pragma unroll
    for (int column = 0; column < kColumns; column += 16) {
      std::uint32_t b_part[2][2];
      load<kB == Stored::by_column>(b_part, b, b_stride, column + first_column(), depth);
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int band = 0; band < kRows / kBandRows; ++band)
          ptx::mma_m8n8k4<kA == Stored::by_row, kB == Stored::by_row>(
              c.x[band][column / 8], c.x[band][column / 8 + 1], a_part[band][step], b_part[step]);
    }
  }

  // 8 columns of results as operands of two steps. Of the two rows of which a lane holds neighbours
  // it is to hold one whole: first the lanes of a quad swap halves of 4 columns, then the quads.
  static __device__ __forceinline__ void to_operand(std::uint32_t (&part)[2][2],
                                                    const float (&x)[4]) {
    const auto swapped = [](std::uint32_t bits, int mate) {
      return __shfl_xor_sync(0xffffffff, bits, mate);
    };
    const std::uint32_t first_row = round_to_register<half>(x[0], x[1]);
    const std::uint32_t second_row = round_to_register<half>(x[2], x[3]);
    const bool in_second = lane_index() & QuadPairs::kFirstMate;
    const std::uint32_t mine = in_second ? second_row : first_row;
    const std::uint32_t mates = swapped(in_second ? first_row : second_row, QuadPairs::kFirstMate);
    const std::uint32_t low = in_second ? mates : mine, high = in_second ? mine : mates;

    const std::uint32_t mates_low = swapped(low, QuadPairs::kSecondMate);
    const std::uint32_t mates_high = swapped(high, QuadPairs::kSecondMate);
    const bool in_last = lane_index() & QuadPairs::kSecondMate;
    part[0][0] = in_last ? mates_low : low;
    part[0][1] = in_last ? mates_high : high;
    part[1][0] = in_last ? low : mates_low;
    part[1][1] = in_last ? high : mates_high;
  }
};

}  // namespace pvt_kernels::cuda
