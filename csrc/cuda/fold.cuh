// The last step of a sum that was split among blocks: in a fixed order, so that every run gives the
// same bits.
#pragma once

#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

struct Fold {
  const float* partials;  // (splits, ...), of which `count` values from the first on are added
  std::int64_t splits, split_stride, count;
  void* out;
};

// Two adjacent values a thread; `count` is even.
template <class Atom>
__global__ void __launch_bounds__(kThreads) fold_kernel(Fold p) {
  if constexpr (is_compiled<Atom>()) {
    using T = typename Atom::Type;
    const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * 2;
    if (index >= p.count) return;
    float2 sum = make_float2(0.0f, 0.0f);
    for (std::int64_t split = 0; split < p.splits; ++split) {
      const float2 part = ptx::load_global(
          reinterpret_cast<const float2*>(p.partials + split * p.split_stride + index));
      sum.x += part.x;
      sum.y += part.y;
    }
    ptx::store_global(reinterpret_cast<Pair<T>*>(static_cast<T*>(p.out) + index),
                      round_pair<T>(sum.x, sum.y));
  }
}

}  // namespace pvt_kernels::cuda
