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

  static __host__ __device__ constexpr int scratch_bytes(int, int) { return 0; }

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

  // Of the weights, which the lanes of a row hold together, each gets what it needs by shuffles: to
  // take them from shared memory costs as many of its cycles, and those to store them.
  template <int kRows, int kColumns, int kDepth>
  static __device__ __forceinline__ void multiply_weights(
      Accumulator<Layout, kRows, kColumns>& c, const Accumulator<Layout, kRows, kDepth>& weights,
      const float* b, int b_stride, unsigned char*) {
    constexpr int kLaneRows = Accumulator<Layout, kRows, kColumns>::kLaneRows;
    constexpr int kMates = 4;
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 2) {
      float rows[kLaneRows][2];
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
#pragma unroll
        for (int k = 0; k < 2; ++k)
          rows[r][k] = __shfl_sync(0xffffffff, weights.x[r / 2][depth / 8][r % 2 * 2 + k],
                                   depth / 2 % kMates, kMates);
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const auto columns = ptx::load_shared(
              reinterpret_cast<const Pair<float>*>(b + (depth + k) * b_stride + c.column(tile, 0)));
#pragma unroll
          for (int i = 0; i < 2 * kLaneRows; ++i) {
            float& sum = c.x[i / 4][tile][i % 4];
            sum = fmaf(rows[i / 2][k], columns.x[i % 2], sum);
          }
        }
    }
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
