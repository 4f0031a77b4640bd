// Spatial reduction backward, in five kernels:
//   dz       LayerNorm backward, a row of gradients of the conv's output
//   dx       dz times the weight's transpose, scattered: patches do not overlap
//   dweight  the patches' transpose times dz, the rows split among blocks
//   sums     over rows, split among blocks: of dz, dy * normalized and dy
//   fold     adds the splits of dweight, and of the sums
#pragma once

#include "cuda/spatial_reduction.cuh"

namespace pvt_kernels::cuda {

struct ReductionBackward {
  ReductionSizes sizes;
  const void* dy;
  pvtk_tokens x;
  std::int64_t dx_batch_stride;  // tokens of no patch included
  const void* weight;            // (R * R * C, C_out)
  const float *norm_weight, *normalized, *rstd;
  void* dz;                 // (B * M, C)
  void* dx;                 // (B, H * W, C)
  float* dweight_partials;  // (splits, R * R * C, C_out)
  std::int64_t splits, steps_per_split;
  float* sum_partials;  // (sum_splits, 3, C)
  std::int64_t sum_splits, rows_per_sum;
};

// A warp for each row.
template <class Atom>
__global__ void __launch_bounds__(kThreads) reduction_dz_kernel(ReductionBackward p) {
  if constexpr (is_compiled<Atom>()) {
    using T = typename Atom::Type;
    const ReductionSizes& s = p.sizes;
    const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + warp_index();
    if (row >= s.patches) return;
    const auto* dy = static_cast<const Pair<T>*>(p.dy);
    const int first = 2 * lane_index(), step = 2 * kWarpSize;

    // f(index of two adjacent values, normalized, the gradients of normalized)
    const auto for_each_pair = [&](auto f) {
      for (int c = first; c < s.channels; c += step) {
        const std::int64_t index = row * s.channels + c;
        const float2 z = ptx::load_global(reinterpret_cast<const float2*>(p.normalized + index));
        const float2 gamma = ptx::load_global(reinterpret_cast<const float2*>(p.norm_weight + c));
        const Pair<T> d = dy[index / 2];
        f(index, z, make_float2(to_float(d.x[0]) * gamma.x, to_float(d.x[1]) * gamma.y));
      }
    };
    float sum = 0.0f, projection = 0.0f;
    for_each_pair([&](std::int64_t, float2 z, float2 g) {
      sum += g.x + g.y;
      projection += g.x * z.x + g.y * z.y;
    });
    const float mean = warp_sum(sum) / s.channels;
    const float slope = warp_sum(projection) / s.channels;
    const float rstd = ptx::load_global(p.rstd + row);
    for_each_pair([&](std::int64_t index, float2 z, float2 g) {
      ptx::store_global(
          reinterpret_cast<Pair<T>*>(static_cast<T*>(p.dz) + index),
          round_pair<T>(rstd * (g.x - mean - z.x * slope), rstd * (g.y - mean - z.y * slope)));
    });
  }
}

// Grid: a tile of the product a block.
template <class Atom>
__global__ void __launch_bounds__(kThreads, 2) reduction_dx_kernel(ReductionBackward p) {
  if constexpr (is_compiled<Atom>()) {
    using T = typename Atom::Type;
    const ReductionSizes& s = p.sizes;
    const ProductWork work(s.patches, s.depth);
    const std::int64_t steps = ceil_div(s.channels, kProductStep);
    const auto dx = Product<Atom, Stored::by_row, Stored::by_column>::tile(
        matrix_rows<T>(p.dz, s.patches, s.channels), matrix_rows<T>(p.weight, s.depth, s.channels),
        work.row, work.column, 0, steps);
    const Patches<T> patches({p.dx, p.dx_batch_stride, s.channels}, s);
    dx.for_each_pair([&](int row, int column, float first, float second) {
      const std::int64_t i = work.row + warp_index() * kWarpRows + row, j = work.column + column;
      if (i < s.patches && j < s.depth)
        ptx::store_global(reinterpret_cast<Pair<T>*>(static_cast<T*>(p.dx) + patches.offset(i, j)),
                          round_pair<T>(first, second));
    });
  }
}

// Grid: a tile of the product and a split of the rows a block.
template <class Atom>
__global__ void __launch_bounds__(kThreads, 2) reduction_dweight_kernel(ReductionBackward p) {
  if constexpr (is_compiled<Atom>()) {
    using T = typename Atom::Type;
    const ReductionSizes& s = p.sizes;
    const ProductWork work(s.depth, s.channels);
    const std::int64_t steps = ceil_div(s.patches, kProductStep);
    const std::int64_t begin = work.split * p.steps_per_split;
    const std::int64_t end = begin + p.steps_per_split < steps ? begin + p.steps_per_split : steps;
    const auto dweight = Product<Atom, Stored::by_column, Stored::by_row>::tile(
        Patches<T>(p.x, s), matrix_rows<T>(p.dz, s.patches, s.channels), work.row, work.column,
        begin, end);
    write_partial(dweight, work,
                  p.dweight_partials + work.split * std::int64_t{s.depth} * s.channels, s.depth,
                  s.channels);
  }
}

// A thread for each channel. Grid: ceil(C / kThreads) blocks for each split of the rows.
template <class Atom>
__global__ void __launch_bounds__(kThreads) reduction_sums_kernel(ReductionBackward p) {
  if constexpr (is_compiled<Atom>()) {
    using T = typename Atom::Type;
    const ReductionSizes& s = p.sizes;
    const std::int64_t blocks = ceil_div(s.channels, kThreads);
    const int channel = blockIdx.x % blocks * kThreads + threadIdx.x;
    const std::int64_t split = blockIdx.x / blocks;
    if (channel >= s.channels) return;
    const std::int64_t begin = split * p.rows_per_sum;
    const std::int64_t end =
        begin + p.rows_per_sum < s.patches ? begin + p.rows_per_sum : s.patches;
    float dbias = 0.0f, dgamma = 0.0f, dbeta = 0.0f;
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t index = row * s.channels + channel;
      const float dy = to_float(static_cast<const T*>(p.dy)[index]);
      dbias += to_float(static_cast<const T*>(p.dz)[index]);
      dgamma += dy * ptx::load_global(p.normalized + index);
      dbeta += dy;
    }
    float* sums = p.sum_partials + split * 3 * s.channels + channel;
    ptx::store_global(sums, dbias);
    ptx::store_global(sums + s.channels, dgamma);
    ptx::store_global(sums + 2 * s.channels, dbeta);
  }
}

}  // namespace pvt_kernels::cuda
