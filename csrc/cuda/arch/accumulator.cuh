// A warp's tile of fp32 results: kRows rows, in bands of 16, by kColumns columns. Every layout
// deals a band out alike, so that the kernels are written once: for each 8 columns a lane holds two
// neighbours of one row and the same two of another, and four lanes share a row.
#pragma once

#include <cuda_runtime.h>

#include "cuda/arch/warp.h"
#include "cuda/dtype.cuh"

namespace pvt_kernels::cuda {

constexpr int kBandRows = 16;
// of the rows of a band, how many one lane holds a part of
constexpr int kBandLaneRows = 2;

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

// An atom multiplies in a Layout. Its multiply<kDepth, kA, kB>(c, a, a_stride, b, b_stride,
// scratch) adds to c the product of a (kRows x kDepth) and b (kDepth x kColumns) in shared memory,
// where each part of b that a warp loads serves all bands; multiply_weights(c, weights, b,
// b_stride, scratch) takes an Accumulator of kDepth columns for a, and b stored by row. `scratch`
// is the warp's own, of scratch_bytes(kRows, kDepth of multiply_weights, or 0 without it).
template <class Layout, int kRows, int kColumns>
struct Accumulator {
  static constexpr int kBands = kRows / kBandRows, kLaneRows = kBands * kBandLaneRows;
  static_assert(kRows % kBandRows == 0 && kColumns % 8 == 0);

  // of each band and 8 columns: two neighbours of the first row, the same of the second
  float x[kBands][kColumns / 8][4];

  static __device__ __forceinline__ int row(int lane_row) {
    return lane_row / kBandLaneRows * kBandRows + Layout::row(lane_row % kBandLaneRows);
  }
  static __device__ __forceinline__ int column(int tile, int i) {
    return 8 * tile + Layout::column() + i;
  }

  __device__ __forceinline__ void clear() {
    for_each([](int, int, float& value) { value = 0.0f; });
  }

  // f(lane_row, column, value&) for every value that this lane holds.
  template <class F>
  __device__ __forceinline__ void for_each(F f) {
    for_each_with(
        *this, [&](int lane_row, int column, float& value, float) { f(lane_row, column, value); });
  }

  // f(lane_row, column, value&, other's value at the same place) for every value that this lane
  // holds.
  template <class F>
  __device__ __forceinline__ void for_each_with(const Accumulator& other, F f) {
#pragma unroll
    for (int band = 0; band < kBands; ++band)
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          f(band * kBandLaneRows + i / 2, column(tile, i % 2), x[band][tile][i],
            other.x[band][tile][i]);
  }

  // f(row, column, first&, second&) for every two neighbours that this lane holds.
  template <class F>
  __device__ __forceinline__ void for_each_pair(F f) {
    for_each_pair_of(*this, f);
  }
  template <class F>
  __device__ __forceinline__ void for_each_pair(F f) const {
    for_each_pair_of(*this, f);
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

 private:
  template <class Self, class F>
  static __device__ __forceinline__ void for_each_pair_of(Self& self, F f) {
#pragma unroll
    for (int band = 0; band < kBands; ++band)
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
        for (int r = 0; r < kBandLaneRows; ++r)
          f(row(band * kBandLaneRows + r), column(tile, 0), self.x[band][tile][2 * r],
            self.x[band][tile][2 * r + 1]);
  }
};

// Rounds the warp's tile to T, into shared memory that other warps don't touch.
template <class T, class Layout, int kRows, int kColumns>
__device__ __forceinline__ void store_rows(const Accumulator<Layout, kRows, kColumns>& values,
                                           T* tile, int stride) {
  values.for_each_pair([&](int row, int column, float first, float second) {
    ptx::store_shared(reinterpret_cast<Pair<T>*>(tile + row * stride + column),
                      round_pair<T>(first, second));
  });
  __syncwarp();
}

// c += weights b for weights that an Accumulator holds, through `rows` in shared memory: for atoms
// that take operands from there.
template <class Atom, class Layout, int kRows, int kColumns, int kDepth>
__device__ __forceinline__ void multiply_through_memory(
    Accumulator<Layout, kRows, kColumns>& c, const Accumulator<Layout, kRows, kDepth>& weights,
    const typename Atom::Type* b, int b_stride, typename Atom::Type* rows, unsigned char* scratch) {
  constexpr int kStride = padded_stride<typename Atom::Type>(kDepth);
  store_rows(weights, rows, kStride);
  Atom::template multiply<kDepth, Stored::by_row, Stored::by_row>(c, rows, kStride, b, b_stride,
                                                                  scratch);
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
