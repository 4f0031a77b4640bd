// A warp's tile of fp32 results: 16 rows by kColumns columns. Every layout deals it out alike, so
// that the kernels are written once: for each 8 columns a lane holds two neighbours of one row and
// the same two of another, and four lanes share a row.
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

// Elements from one row of a tile in shared memory to the next: 16 bytes more than it holds, so
// that the same columns of 8 rows lie in different banks.
template <class T>
__host__ __device__ constexpr int padded_stride(int columns) {
  return columns + 16 / static_cast<int>(sizeof(T));
}

// The layout of mma.sync's m16n8 shapes (PTX ISA, "Matrix Fragments for mma.m16n8k8" and
// "... m16n8k16"): lane l holds rows l / 4 and l / 4 + 8, columns 2 * (l % 4) and the next.
struct Rows16 {
  // the bits in which the lanes that share a row differ
  static constexpr int kFirstMate = 1, kSecondMate = 2;

  static __device__ __forceinline__ int row(int lane_row) {
    return lane_index() / 4 + 8 * lane_row;
  }
  // the first of two neighbours, within 8 columns
  static __device__ __forceinline__ int column() { return 2 * (lane_index() % 4); }
};

// An atom multiplies in a Layout. Its multiply(c, a, a_stride, b, b_stride, scratch) adds to c the
// product of a (16 x kDepth) and b (kDepth x kColumns) in shared memory; multiply_weights(c,
// weights, b, b_stride, scratch) takes an Accumulator of kDepth columns for a, and b stored by row.
// `scratch` is the warp's own, of scratch_bytes(kDepth of multiply_weights, or 0 without it).
template <class Layout, int kColumns>
struct Accumulator {
  // of each 8 columns: two neighbours of the first row, the same of the second
  float x[kColumns / 8][4];

  static __device__ __forceinline__ int row(int lane_row) { return Layout::row(lane_row); }
  static __device__ __forceinline__ int column(int tile, int i) {
    return 8 * tile + Layout::column() + i;
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

  // f(lane_row, column, value&, other's value at the same place) for every value that this lane
  // holds.
  template <class F>
  __device__ __forceinline__ void for_each_with(const Accumulator& other, F f) {
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(i / 2, column(tile, i % 2), x[tile][i], other.x[tile][i]);
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

  // Over the four lanes that share a row.
  static __device__ __forceinline__ float row_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, Layout::kFirstMate));
    return fmaxf(value, __shfl_xor_sync(0xffffffff, value, Layout::kSecondMate));
  }
  static __device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(0xffffffff, value, Layout::kFirstMate);
    return value + __shfl_xor_sync(0xffffffff, value, Layout::kSecondMate);
  }
};

// Rounds the warp's tile to T, into shared memory that other warps don't touch.
template <class T, class Layout, int kColumns>
__device__ __forceinline__ void store_rows(const Accumulator<Layout, kColumns>& values, T* tile,
                                           int stride) {
  values.for_each_pair([&](int row, int column, float first, float second) {
    ptx::store_shared(reinterpret_cast<Pair<T>*>(tile + row * stride + column),
                      round_pair<T>(first, second));
  });
  __syncwarp();
}

// c += weights b for weights that an Accumulator holds, through `rows` in shared memory: for atoms
// that take operands from there.
template <class Atom, int kColumns, int kDepth, class Layout>
__device__ __forceinline__ void multiply_through_memory(Accumulator<Layout, kColumns>& c,
                                                        const Accumulator<Layout, kDepth>& weights,
                                                        const typename Atom::Type* b, int b_stride,
                                                        typename Atom::Type* rows,
                                                        unsigned char* scratch) {
  constexpr int kStride = padded_stride<typename Atom::Type>(kDepth);
  store_rows(weights, rows, kStride);
  Atom::template multiply<kColumns, kDepth, Stored::by_row, Stored::by_row>(c, rows, kStride, b,
                                                                            b_stride, scratch);
  // every lane has read the rows
  __syncwarp();
}

// Two neighbours as the operand registers of mma.sync hold them.
template <class T>
__device__ __forceinline__ std::uint32_t round_to_register(float first, float second) {
  static_assert(sizeof(Pair<T>) == sizeof(std::uint32_t));
  const Pair<T> pair = round_pair<T>(first, second);
  std::uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

}  // namespace pvt_kernels::cuda
