// The same by nvcuda::wmma, 16 x 16 x 16 with fp32 accumulators (CUDA C++ Programming Guide, "Warp
// Matrix Functions"): slower, but it trusts no lane layout. Where a fragment's values lie is the
// compiler's secret, so products pass through shared memory on their way to an Accumulator.
// PVT_KERNELS_SM70_WMMA=1 in the environment chooses it.
#pragma once

#include <mma.h>

#include <type_traits>

#include "cuda/arch/accumulator.cuh"

namespace pvt_kernels::cuda {

struct Sm70Wmma {
  using Type = half;
  using Layout = Rows16;
  static constexpr bool kCopiesAsync = false;

  // A 16 x 16 tile of products, in which four rows lie in different banks, and the weights of
  // multiply_weights.
  static constexpr int kStride = 24, kResultBytes = kBandRows * kStride * sizeof(float);
  static __host__ __device__ constexpr int scratch_bytes(int rows, int weight_columns) {
    return kResultBytes +
           (weight_columns ? rows * padded_stride<half>(weight_columns) * sizeof(half) : 0);
  }

  template <int kDepth, Stored kA, Stored kB, int kRows, int kColumns>
  static __device__ __forceinline__ void multiply(Accumulator<Layout, kRows, kColumns>& c,
                                                  const half* a, int a_stride, const half* b,
                                                  int b_stride, unsigned char* scratch) {
    namespace wmma = nvcuda::wmma;
    using OrderA = Order<kA>;
    using OrderB = Order<kB>;
    float* results = reinterpret_cast<float*>(scratch);
#pragma unroll
    for (int band = 0; band < kRows / kBandRows; ++band)
#pragma unroll
      for (int column = 0; column < kColumns; column += 16) {
        wmma::fragment<wmma::accumulator, 16, 16, 16, float> product;
        wmma::fill_fragment(product, 0.0f);
      // unrolled whole, the loop would hold every operand in registers
#pragma unroll 2
        for (int depth = 0; depth < kDepth; depth += 16) {
          wmma::fragment<wmma::matrix_a, 16, 16, 16, half, OrderA> a_part;
          wmma::fragment<wmma::matrix_b, 16, 16, 16, half, OrderB> b_part;
          wmma::load_matrix_sync(a_part, address<kA>(a, a_stride, band * kBandRows, depth),
                                 a_stride);
          wmma::load_matrix_sync(b_part, address<kB>(b, b_stride, depth, column), b_stride);
          wmma::mma_sync(product, a_part, b_part, product);
        }
        wmma::store_matrix_sync(results, product, kStride, wmma::mem_row_major);
        __syncwarp();
#pragma unroll
        for (int tile = 0; tile < 2; ++tile)
#pragma unroll
          for (int r = 0; r < kBandLaneRows; ++r) {
            const auto pair = ptx::load_shared(reinterpret_cast<const Pair<float>*>(
                results + Layout::row(r) * kStride + c.column(tile, 0)));
#pragma unroll
            for (int i = 0; i < 2; ++i) c.x[band][column / 8 + tile][2 * r + i] += pair.x[i];
          }
        __syncwarp();
      }
  }

  template <int kRows, int kColumns, int kDepth>
  static __device__ __forceinline__ void multiply_weights(
      Accumulator<Layout, kRows, kColumns>& c, const Accumulator<Layout, kRows, kDepth>& weights,
      const half* b, int b_stride, unsigned char* scratch) {
    multiply_through_memory<Sm70Wmma>(c, weights, b, b_stride,
                                      reinterpret_cast<half*>(scratch + kResultBytes), scratch);
  }

 private:
  template <Stored kStored>
  static __device__ __forceinline__ const half* address(const half* matrix, int stride, int row,
                                                        int column) {
    return matrix + (kStored == Stored::by_row ? row * stride + column : column * stride + row);
  }

  template <Stored kStored>
  using Order = std::conditional_t<kStored == Stored::by_row, nvcuda::wmma::row_major,
                                   nvcuda::wmma::col_major>;
};

}  // namespace pvt_kernels::cuda
