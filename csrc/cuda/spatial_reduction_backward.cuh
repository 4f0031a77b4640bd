// Spatial reduction backward, in five kernels:
//   dz       LayerNorm backward, a row of gradients of the conv's output
//   dx       dz times the weight's transpose, scattered: patches do not overlap
//   dweight  the patches' transpose times dz, the rows split among blocks
//   sums     over rows, split among blocks: of dz, dy * normalized and dy
//   fold     adds the splits, of dweight and of the sums
#pragma once

#include "cuda/spatial_reduction_launch.cuh"

namespace pvt_kernels::cuda {

// A block of one warp for each row, of which it keeps the normalized values and their gradients in
// shared memory: 2 * C floats. A lane has four adjacent channels of every 128.
template <class Atom>
__global__ void __launch_bounds__(kWarpSize)
    spatial_reduction_dz_kernel(SpatialReductionBackward p) {
  using T = typename Atom::Type;
  const SpatialReductionSizes& s = p.sizes;
  const std::int64_t row = blockIdx.x;
  float* kept_z = reinterpret_cast<float*>(shared_memory);
  float* kept_g = kept_z + s.channels;
  const int first = 4 * lane_index(), step = 4 * kWarpSize;

  float sum = 0.0f, projection = 0.0f;
  for (int c = first; c < s.channels; c += step) {
    const std::int64_t index = row * s.channels + c;
    const float4 z = ptx::load_global(reinterpret_cast<const float4*>(p.normalized + index));
    const float4 gamma = vector_quad<T>(p.norm_weight, p.norm_in_fp32, c);
    float4 g = to_float(
        ptx::load_global(reinterpret_cast<const Quad<T>*>(static_cast<const T*>(p.dy) + index)));
    g = make_float4(g.x * gamma.x, g.y * gamma.y, g.z * gamma.z, g.w * gamma.w);
    ptx::store_shared(reinterpret_cast<float4*>(kept_z + c), z);
    ptx::store_shared(reinterpret_cast<float4*>(kept_g + c), g);
    sum += g.x + g.y + g.z + g.w;
    projection += g.x * z.x + g.y * z.y + g.z * z.z + g.w * z.w;
  }
  const float mean = warp_sum(sum) / s.channels;
  const float slope = warp_sum(projection) / s.channels;
  const float rstd = ptx::load_global(p.rstd + row);
  for (int c = first; c < s.channels; c += step) {
    const float4 z = ptx::load_shared(reinterpret_cast<const float4*>(kept_z + c));
    const float4 g = ptx::load_shared(reinterpret_cast<const float4*>(kept_g + c));
    ptx::store_global(reinterpret_cast<Quad<T>*>(static_cast<T*>(p.dz) + row * s.channels + c),
                      round_quad<T>(make_float4(
                          rstd * (g.x - mean - z.x * slope), rstd * (g.y - mean - z.y * slope),
                          rstd * (g.z - mean - z.z * slope), rstd * (g.w - mean - z.w * slope))));
  }
}

template <class Atom>
using DxProduct = Product<Atom, Stored::by_row, Stored::by_column>;
template <class Atom>
using DweightProduct = Product<Atom, Stored::by_column, Stored::by_row>;

// Grid: a tile of the product a block.
template <class Atom>
__global__ void __launch_bounds__(kThreads, 2)
    spatial_reduction_dx_kernel(SpatialReductionBackward p) {
  using T = typename Atom::Type;
  const SpatialReductionSizes& s = p.sizes;
  const ProductWork work(s.patches, s.depth);
  const int steps = ceil_div(s.channels, kProductStep);
  const auto result = DxProduct<Atom>::tile(matrix_rows<T>(p.dz, s.patches, s.channels),
                                            matrix_rows<T>(p.weight, s.depth, s.channels), work.row,
                                            work.column, 0, steps);
  // every warp is done with the tiles in shared memory
  __syncthreads();
  constexpr int kStride = padded_stride<T>(kWarpTile), kSize = kWarpTile * kStride;
  static_assert(kWarps * kSize * sizeof(T) <= DxProduct<Atom>::kBytes);
  T* tile = reinterpret_cast<T*>(shared_memory) + warp_index() * kSize;
  store_rows(result, tile, kStride);
  T* dx = static_cast<T*>(p.dx);
  const Patches<T> patches({dx, p.dx_batch_stride, s.channels}, s);
  const auto to = [&](int row, int column) {
    const int i = work.row + warp_row() + row, j = work.column + warp_column() + column;
    return i < s.patches && j < s.depth ? dx + patches.first(i) + patches.within(j) : nullptr;
  };
  if (p.adds)
    write_rows<T, kWarpTile, kWarpTile, true>(tile, to);
  else
    write_rows<T, kWarpTile, kWarpTile>(tile, to);
}

// Grid: a tile of the product and a split of the rows a block.
template <class Atom>
__global__ void __launch_bounds__(kThreads, 2)
    spatial_reduction_dweight_kernel(SpatialReductionBackward p) {
  using T = typename Atom::Type;
  const SpatialReductionSizes& s = p.sizes;
  const ProductWork work(s.depth, s.channels);
  const int steps = ceil_div(s.patches, kProductStep);
  const int begin = work.split * p.steps_per_split;
  const int end = begin + p.steps_per_split < steps ? begin + p.steps_per_split : steps;
  const auto dweight =
      DweightProduct<Atom>::tile(Patches<T>(p.x, s), matrix_rows<T>(p.dz, s.patches, s.channels),
                                 work.row, work.column, begin, end);
  write_partial(dweight, work, p.dweight_partials + work.split * std::int64_t{s.depth} * s.channels,
                s.depth, s.channels);
}

// A thread for four adjacent channels of a split of the rows.
template <class Atom>
__global__ void __launch_bounds__(kThreads)
    spatial_reduction_sums_kernel(SpatialReductionBackward p) {
  using T = typename Atom::Type;
  const SpatialReductionSizes& s = p.sizes;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t split = thread / (s.channels / 4);
  const int channel = static_cast<int>(thread % (s.channels / 4)) * 4;
  if (split >= p.sum_splits) return;
  const std::int64_t begin = split * p.rows_per_sum;
  const std::int64_t end = begin + p.rows_per_sum < s.patches ? begin + p.rows_per_sum : s.patches;
  float4 dbias = make_float4(0.0f, 0.0f, 0.0f, 0.0f), dgamma = dbias, dbeta = dbias;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t index = row * s.channels + channel;
    const auto load = [&](const void* tensor) {
      const T* address = static_cast<const T*>(tensor) + index;
      return to_float(ptx::load_global(reinterpret_cast<const Quad<T>*>(address)));
    };
    const float4 dy = load(p.dy), dz = load(p.dz);
    const float4 z = ptx::load_global(reinterpret_cast<const float4*>(p.normalized + index));
    dbias = make_float4(dbias.x + dz.x, dbias.y + dz.y, dbias.z + dz.z, dbias.w + dz.w);
    dgamma = make_float4(dgamma.x + dy.x * z.x, dgamma.y + dy.y * z.y, dgamma.z + dy.z * z.z,
                         dgamma.w + dy.w * z.w);
    dbeta = make_float4(dbeta.x + dy.x, dbeta.y + dy.y, dbeta.z + dy.z, dbeta.w + dy.w);
  }
  float* sums = p.sum_partials + split * 3 * s.channels + channel;
  ptx::store_global(reinterpret_cast<float4*>(sums), dbias);
  ptx::store_global(reinterpret_cast<float4*>(sums + s.channels), dgamma);
  ptx::store_global(reinterpret_cast<float4*>(sums + 2 * s.channels), dbeta);
}

}  // namespace pvt_kernels::cuda
