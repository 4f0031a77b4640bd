// fp32 on every architecture: fused multiply-adds. Lane l computes its own values of the
// Accumulator, rows l / 4 and l / 4 + 8 of each band and two of each 8 columns, from four depths at
// a time. The architectures differ in the tiles for which they have room.
#pragma once

#include "cuda/arch/accumulator.cuh"

namespace pvt_kernels::cuda {

struct Simt {
  using Type = float;
  using Layout = Rows16;
  static constexpr bool kCopiesAsync = false;

  // the weights of multiply_weights
  static __host__ __device__ constexpr int scratch_bytes(int rows, int weight_columns) {
    return weight_columns ? rows * padded_stride<float>(weight_columns) * sizeof(float) : 0;
  }

  template <int kDepth, Stored kA, Stored kB, int kRows, int kColumns>
  static __device__ __forceinline__ void multiply(Accumulator<Layout, kRows, kColumns>& c,
                                                  const float* a, int a_stride, const float* b,
                                                  int b_stride, unsigned char*) {
    constexpr int kLaneRows = Accumulator<Layout, kRows, kColumns>::kLaneRows;
    // unrolled whole, the loop would hold every operand in registers
#pragma unroll 2
    for (int depth = 0; depth < kDepth; depth += 4) {
      float rows[kLaneRows][4];
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        if constexpr (kA == Stored::by_row) {
          load(rows[r], a + c.row(r) * a_stride + depth);
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k)
            rows[r][k] = ptx::load_shared(a + (depth + k) * a_stride + c.row(r));
        }
      }
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile) {
        float columns[2][4];
        load_columns<kB>(columns, b, b_stride, c.column(tile, 0), depth);
#pragma unroll
        for (int i = 0; i < 2 * kLaneRows; ++i)
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            float& sum = c.x[i / 4][tile][i % 4];
            sum = fmaf(rows[i / 2][k], columns[i % 2][k], sum);
          }
      }
    }
  }

  template <int kRows, int kColumns, int kDepth>
  static __device__ __forceinline__ void multiply_weights(
      Accumulator<Layout, kRows, kColumns>& c, const Accumulator<Layout, kRows, kDepth>& weights,
      const float* b, int b_stride, unsigned char* scratch) {
    multiply_through_memory<Simt>(c, weights, b, b_stride, reinterpret_cast<float*>(scratch),
                                  scratch);
  }

 private:
  static __device__ __forceinline__ void load(float (&values)[4], const float* address) {
    const auto vector = ptx::load_shared(reinterpret_cast<const Vector<float>*>(address));
#pragma unroll
    for (int k = 0; k < 4; ++k) values[k] = vector.x[k];
  }

  // Four depths of two neighbouring columns of b.
  template <Stored kB>
  static __device__ __forceinline__ void load_columns(float (&columns)[2][4], const float* b,
                                                      int b_stride, int column, int depth) {
    if constexpr (kB == Stored::by_column) {
#pragma unroll
      for (int i = 0; i < 2; ++i) load(columns[i], b + (column + i) * b_stride + depth);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto both = ptx::load_shared(
            reinterpret_cast<const Pair<float>*>(b + (depth + k) * b_stride + column));
#pragma unroll
        for (int i = 0; i < 2; ++i) columns[i][k] = both.x[i];
      }
    }
  }
};

struct Simt70 : Simt {};
struct Simt75 : Simt {};
struct Simt80 : Simt {};

}  // namespace pvt_kernels::cuda
