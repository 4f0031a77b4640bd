// fp16 on compute capability 7.0 and 7.2: nvcuda::wmma, 16 x 16 x 16 with fp32 accumulators (CUDA
// C++ Programming Guide, "Warp Matrix Functions"). Where a fragment's values lie is the compiler's
// secret, so products pass through shared memory on their way to an Accumulator.
#pragma once

#include <mma.h>

#include <type_traits>

#include "cuda/arch/accumulator.cuh"

namespace pvt_kernels::cuda {

struct Sm70 {
  using Type = half;
  static constexpr int kFirstArch = 70, kLastArch = 74;
  static constexpr bool kCopiesAsync = false;
  // a 16 x 16 tile whose rows are shifted by 4 banks, in multiples of the 32 bytes that wmma wants
  static constexpr int kScratchStride = 20, kScratchFloats = kWarpRows * kScratchStride;

  template <int kColumns, int kDepth, Stored kA, Stored kB>
  static __device__ __forceinline__ void multiply(Accumulator<kColumns>& c, const half* a,
                                                  int a_stride, const half* b, int b_stride,
                                                  float* scratch) {
    namespace wmma = nvcuda::wmma;
    using OrderA = Order<kA>;
    using OrderB = Order<kB>;
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
      wmma::store_matrix_sync(scratch, product, kScratchStride, wmma::mem_row_major);
      __syncwarp();
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          c.x[column / 8 + tile][i] +=
              scratch[c.row(i / 2) * kScratchStride + c.column(tile, i % 2)];
      __syncwarp();
    }
  }

 private:
  template <Stored kStored>
  using Order = std::conditional_t<kStored == Stored::by_row, nvcuda::wmma::row_major,
                                   nvcuda::wmma::col_major>;
};

}  // namespace pvt_kernels::cuda
