// The last step of sums that were split among blocks: in a fixed order, so that every run gives the
// same bits.
#pragma once

#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

constexpr int kMostSums = 3;

struct Fold {
  const float* partials;  // (splits, sums, count), contiguous
  std::int64_t splits, sums, count;
  // Of each sum, `count` values: value (i * middle + j) * inner + k is stride_i * i + stride_j * j
  // + stride_k * k values from the first. `inner` is a multiple of 4.
  void* out[kMostSums];
  std::int64_t middle, inner, stride_i, stride_j, stride_k;
  bool in_fp32[kMostSums];  // else in the atom's dtype
};

// One after the other.
struct Folds {
  Fold first, second;
};

template <class T>
__device__ __forceinline__ void store_quad(void* out, std::int64_t offset, std::int64_t stride,
                                           float4 sum) {
  T* first = static_cast<T*>(out) + offset;
  const Quad<T> values = round_quad<T>(sum);
  if (stride == 1) {
    ptx::store_global(reinterpret_cast<Quad<T>*>(first), values);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) ptx::store_global(first + i * stride, values.x[i / 2].x[i % 2]);
}

// Four adjacent values.
template <class T>
__device__ __forceinline__ void fold(const Fold& p, std::int64_t index) {
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
  const std::int64_t which = index / p.count, value = index % p.count;
  const std::int64_t row = value / p.inner;
  const std::int64_t offset =
      row / p.middle * p.stride_i + row % p.middle * p.stride_j + value % p.inner * p.stride_k;
  // no index by a variable, for which the parameters would be copied to local memory
  void* out = which == 0 ? p.out[0] : which == 1 ? p.out[1] : p.out[2];
  const bool in_fp32 = which == 0 ? p.in_fp32[0] : which == 1 ? p.in_fp32[1] : p.in_fp32[2];
  if (in_fp32)
    store_quad<float>(out, offset, p.stride_k, sum);
  else
    store_quad<T>(out, offset, p.stride_k, sum);
}

// Four values a thread.
template <class Atom>
__global__ void __launch_bounds__(kThreads) fold_kernel(Folds p) {
  using T = typename Atom::Type;
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
  const std::int64_t of_first = p.first.sums * p.first.count;
  if (index < of_first)
    fold<T>(p.first, index);
  else if (index - of_first < p.second.sums * p.second.count)
    fold<T>(p.second, index - of_first);
}

}  // namespace pvt_kernels::cuda
