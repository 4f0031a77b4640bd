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
  static constexpr int kStride = 24, kResultBytes = kWarpRows * kStride * sizeof(float);
  static __host__ __device__ constexpr int scratch_bytes(int weight_columns) {
    return kResultBytes +
           (weight_columns ? kWarpRows * padded_stride<half>(weight_columns) * sizeof(half) : 0);
  }

  template <int kColumns, int kDepth, Stored kA, Stored kB>
  static __device__ __forceinline__ void multiply(Accumulator<Layout, kColumns>& c, const half* a,
                                                  int a_stride, const half* b, int b_stride,
                                                  unsigned char* scratch) {
    namespace wmma = nvcuda::wmma;
    using OrderA = Order<kA>;
    using OrderB = Order<kB>;
    float* results = reinterpret_cast<float*>(scratch);
#pragma unroll
    for (int column = 0; column < kColumns; column += 16) {
      wmma::fragment<wmma::accumulator, 16, 16, 16, float> product;
      wmma::fill_fragment(product, 0.0f);
#pragma unroll
      for (int depth = 0; depth < kDepth; depth += 16) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, half, OrderA> a_part;
        wmma::fragment<wmma::matrix_b, 16, 16, 16, half, OrderB> b_part;
        wmma::load_matrix_sync(a_part, a + (kA == Stored::by_row ? depth : depth * a_stride),
                               a_stride);
        wmma::load_matrix_sync(
            b_part,
            b + (kB == Stored::by_row ? depth * b_stride + column : column * b_stride + depth),
            b_stride);
        wmma::mma_sync(product, a_part, b_part, product);
      }
      wmma::store_matrix_sync(results, product, kStride, wmma::mem_row_major);
      __syncwarp();
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int r = 0; r < kLaneRows; ++r) {
          const auto pair = ptx::load_shared(reinterpret_cast<const Pair<float>*>(
              results + c.row(r) * kStride + c.column(tile, 0)));
#pragma unroll
          for (int i = 0; i < 2; ++i) c.x[column / 8 + tile][2 * r + i] += pair.x[i];
        }
      __syncwarp();
    }
  }

  template <int kColumns, int kDepth>
  static __device__ __forceinline__ void multiply_weights(
      Accumulator<Layout, kColumns>& c, const Accumulator<Layout, kDepth>& weights, const half* b,
      int b_stride, unsigned char* scratch) {
    multiply_through_memory<Sm70Wmma>(c, weights, b, b_stride,
                                      reinterpret_cast<half*>(scratch + kResultBytes), scratch);
  }

 private:
  template <Stored kStored>
  using Order = std::conditional_t<kStored == Stored::by_row, nvcuda::wmma::row_major,
                                   nvcuda::wmma::col_major>;
};

}  // namespace pvt_kernels::cuda
