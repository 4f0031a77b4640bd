// The last step of sums that were split among blocks: in a fixed order, so that every run gives the
// same bits.
#pragma once

#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

constexpr int kMostSums = 3;

struct Fold {
  const float* partials;  // (splits, sums, count), contiguous
  std::int64_t splits, sums, count;
  void* out[kMostSums];  // of each sum, `count` values
};

// Four adjacent values a thread; `count` is a multiple of 4.
template <class Atom>
__global__ void __launch_bounds__(kThreads) fold_kernel(Fold p) {
  using T = typename Atom::Type;
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
  if (index >= p.sums * p.count) return;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  // several at a time on their way
#pragma unroll 8
  for (std::int64_t split = 0; split < p.splits; ++split) {
    const float4 part = ptx::load_global(
        reinterpret_cast<const float4*>(p.partials + split * p.sums * p.count + index));
    sum.x += part.x;
    sum.y += part.y;
    sum.z += part.z;
    sum.w += part.w;
  }
  const std::int64_t which = index / p.count;
  void* out = which == 0 ? p.out[0] : which == 1 ? p.out[1] : p.out[2];
  ptx::store_global(reinterpret_cast<Quad<T>*>(static_cast<T*>(out) + index % p.count),
                    round_quad<T>(sum));
}

}  // namespace pvt_kernels::cuda
