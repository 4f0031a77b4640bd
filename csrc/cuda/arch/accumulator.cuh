// A warp's tile of fp32 results: 16 rows by kColumns columns, in the layout that mma.sync's m16n8
// shapes give it (PTX ISA, "Matrix Fragments for mma.m16n8k8" and "... m16n8k16"): for each 8
// columns, lane l holds
//   x[0], x[1]   row l / 4,      columns 2 * (l % 4) and the next
//   x[2], x[3]   row l / 4 + 8,  the same columns
// Every atom gives its results this form, so that the kernels are written once.
#pragma once

#include <cuda_runtime.h>

#include "cuda/dtype.cuh"

namespace pvt_kernels::cuda {

constexpr int kWarpSize = 32;
constexpr int kWarpRows = 16;
// of the rows of a warp's tile, how many one lane holds a part of
constexpr int kLaneRows = 2;

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarpSize; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kWarpSize; }

// How a matrix lies in shared memory: row after row, or column after column.
enum class Stored { by_row, by_column };

template <int kColumns>
struct Accumulator {
  float x[kColumns / 8][4];

  static __device__ __forceinline__ int row(int lane_row) {
    return lane_index() / 4 + 8 * lane_row;
  }
  static __device__ __forceinline__ int column(int tile, int i) {
    return 8 * tile + 2 * (lane_index() % 4) + i;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[tile][i] = 0.0f;
  }

  // f(lane_row, column, value&) for every value that this lane holds.
  template <class F>
  __device__ __forceinline__ void for_each(F f) {
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(i / 2, column(tile, i % 2), x[tile][i]);
  }

  // f(row, column, first, second) for every two neighbours that this lane holds.
  template <class F>
  __device__ __forceinline__ void for_each_pair(F f) const {
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
        f(row(r), column(tile, 0), x[tile][2 * r], x[tile][2 * r + 1]);
  }
};

// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Rounds the warp's tile to T, into shared memory that other warps don't touch.
template <class T, int kColumns>
__device__ __forceinline__ void store_rows(const Accumulator<kColumns>& values, T* tile,
                                           int stride) {
  values.for_each_pair([&](int row, int column, float first, float second) {
    *reinterpret_cast<Pair<T>*>(tile + row * stride + column) = round_pair<T>(first, second);
  });
  __syncwarp();
}

}  // namespace pvt_kernels::cuda
