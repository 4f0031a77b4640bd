// fp32 on every architecture: fused multiply-adds. Lane l computes its own values of the
// Accumulator, rows l / 4 and l / 4 + 8 and two of each 8 columns, from four depths at a time.
#pragma once

#include "cuda/arch/accumulator.cuh"

namespace pvt_kernels::cuda {

struct Simt {
  using Type = float;
  static constexpr int kFirstArch = 70, kLastArch = 999;
  static constexpr bool kCopiesAsync = false;
  static constexpr int kScratchFloats = 0;

  template <int kColumns, int kDepth, bool kTransposed>
  static __device__ __forceinline__ void multiply(Accumulator<kColumns>& c, const float* a,
                                                  int a_stride, const float* b, int b_stride,
                                                  float*) {
    const int pair = lane_index() % 4 * 2;
    // unrolled whole, the loop would hold every operand in registers
#pragma unroll 2
    for (int depth = 0; depth < kDepth; depth += 4) {
      Vector<float> rows[kLaneRows];
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
        rows[r] = *reinterpret_cast<const Vector<float>*>(a + c.row(r) * a_stride + depth);
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile) {
        float columns[4][2];
        load_columns<kTransposed>(columns, b, b_stride, 8 * tile + pair, depth);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            c.x[tile][i] = fmaf(rows[i / 2].x[k], columns[k][i % 2], c.x[tile][i]);
      }
    }
  }

 private:
  // Four depths of two neighbouring columns of b.
  template <bool kTransposed>
  static __device__ __forceinline__ void load_columns(float (&columns)[4][2], const float* b,
                                                      int b_stride, int column, int depth) {
    if constexpr (kTransposed) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto depths =
            *reinterpret_cast<const Vector<float>*>(b + (column + i) * b_stride + depth);
#pragma unroll
        for (int k = 0; k < 4; ++k) columns[k][i] = depths.x[k];
      }
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto both =
            *reinterpret_cast<const Pair<float>*>(b + (depth + k) * b_stride + column);
#pragma unroll
        for (int i = 0; i < 2; ++i) columns[k][i] = both.x[i];
      }
    }
  }
};

}  // namespace pvt_kernels::cuda
