// Spatial reduction forward, in two kernels:
//   product    (B*M x R*R*C) times (R*R*C x C), the depth split among blocks: there are few rows
//   normalize  adds the splits and the bias, then LayerNorm
#pragma once

#include "cuda/spatial_reduction_launch.cuh"

namespace pvt_kernels::cuda {

template <class Atom>
using ForwardProduct = Product<Atom, Stored::by_row, Stored::by_row>;

// Grid: a tile of the product and a split a block.
template <class Atom>
__global__ void __launch_bounds__(kThreads, 2)
    spatial_reduction_product_kernel(SpatialReductionForward p) {
  using T = typename Atom::Type;
  const SpatialReductionSizes& s = p.sizes;
  const ProductWork work(s.patches, s.channels);
  const int steps = ceil_div(s.depth, kProductStep);
  const int begin = work.split * p.steps_per_split;
  const int end = begin + p.steps_per_split < steps ? begin + p.steps_per_split : steps;
  const auto z =
      ForwardProduct<Atom>::tile(Patches<T>(p.x, s), matrix_rows<T>(p.weight, s.depth, s.channels),
                                 work.row, work.column, begin, end);
  write_partial(z, work, p.partials + std::int64_t{work.split} * s.patches * s.channels, s.patches,
                s.channels);
}

// A warp for each row, which it keeps in shared memory: kWarps * C floats of it. A lane has four
// adjacent channels of every 128.
template <class Atom>
__global__ void __launch_bounds__(kThreads)
    spatial_reduction_normalize_kernel(SpatialReductionForward p) {
  using T = typename Atom::Type;
  const SpatialReductionSizes& s = p.sizes;
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= s.patches) return;
  const std::int64_t size = std::int64_t{s.patches} * s.channels;
  float* z = reinterpret_cast<float*>(shared_memory) + warp_index() * s.channels;
  const int first = 4 * lane_index(), step = 4 * kWarpSize;
  const auto load = [](const float* address) {
    return ptx::load_global(reinterpret_cast<const float4*>(address));
  };

  float sum = 0.0f;
  for (int c = first; c < s.channels; c += step) {
    float4 value = vector_quad<T>(p.bias, false, c);
    for (std::int64_t split = 0; split < p.splits; ++split) {
      const float4 part = load(p.partials + split * size + row * s.channels + c);
      value.x += part.x;
      value.y += part.y;
      value.z += part.z;
      value.w += part.w;
    }
    ptx::store_shared(reinterpret_cast<float4*>(z + c), value);
    sum += value.x + value.y + value.z + value.w;
  }
  const float mean = warp_sum(sum) / s.channels;
  const auto centered = [&](int c) {
    const float4 x = ptx::load_shared(reinterpret_cast<const float4*>(z + c));
    return make_float4(x.x - mean, x.y - mean, x.z - mean, x.w - mean);
  };
  float squares = 0.0f;
  for (int c = first; c < s.channels; c += step) {
    const float4 x = centered(c);
    squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  }
  const float rstd = 1.0f / sqrtf(warp_sum(squares) / s.channels + s.eps);
  if (lane_index() == 0) ptx::store_global(p.rstd + row, rstd);
  for (int c = first; c < s.channels; c += step) {
    const float4 x = centered(c);
    const float4 normalized = make_float4(x.x * rstd, x.y * rstd, x.z * rstd, x.w * rstd);
    const float4 gamma = vector_quad<T>(p.norm_weight, p.norm_in_fp32, c);
    const float4 beta = vector_quad<T>(p.norm_bias, p.norm_in_fp32, c);
    const std::int64_t index = row * s.channels + c;
    ptx::store_global(reinterpret_cast<float4*>(p.normalized + index), normalized);
    ptx::store_global(reinterpret_cast<Quad<T>*>(static_cast<T*>(p.y) + index),
                      round_quad<T>(make_float4(
                          normalized.x * gamma.x + beta.x, normalized.y * gamma.y + beta.y,
                          normalized.z * gamma.z + beta.z, normalized.w * gamma.w + beta.w)));
  }
}

}  // namespace pvt_kernels::cuda
