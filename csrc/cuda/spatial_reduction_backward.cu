#include <algorithm>

#include "cuda/blocks.h"
#include "cuda/family.cuh"
#include "cuda/fold_launch.cuh"
#include "cuda/spatial_reduction_backward.cuh"

namespace pvt_kernels::cuda {
namespace {

constexpr std::int64_t kLeastRowsPerSum = 16;

template <class Atom>
PlanParts plan_for(const pvtk_spatial_reduction& call, SpatialReductionBackward sizes,
                   const pvtk_weight_strides& dweight) {
  const SpatialReductionSizes& s = sizes.sizes;
  const std::int64_t channels = s.channels, weights = channels * s.depth;
  const Split split = product_split(s.depth, s.channels, s.patches, call.dtype, multiprocessors());
  sizes.splits = split.count;
  sizes.steps_per_split = split.steps;
  // two blocks a multiprocessor, but no more partial sums than a tenth of what they are of
  const std::int64_t rows = std::max(s.patches, 1);
  const std::int64_t threads = 2 * multiprocessors() * kThreads;
  const std::int64_t wanted = std::max<std::int64_t>(1, threads / (channels / 4));
  sizes.rows_per_sum = std::max(ceil_div(rows, wanted), kLeastRowsPerSum);
  sizes.sum_splits = ceil_div(rows, sizes.rows_per_sum);
  // each a multiple of 16, since there are a multiple of 8 channels
  const std::int64_t dz_bytes = s.patches * channels * element_size(call.dtype);
  const std::int64_t dweight_bytes = split.count * weights * sizeof(float);
  const std::int64_t sum_bytes = sizes.sum_splits * 3 * channels * sizeof(float);

  using Kernels = Kernel<SpatialReductionBackward>;
  const auto kernel = [&](const char* name, auto function, std::int64_t blocks, int block_threads,
                          int shared_bytes) {
    return Kernels(kernel_name<kFamily>(name, call.dtype), function, blocks, block_threads,
                   shared_bytes);
  };
  const Kernels kernels[] = {
      kernel("spatial_reduction_dz", spatial_reduction_dz_kernel<Atom>, s.patches, kWarpSize,
             2 * s.channels * sizeof(float)),
      kernel("spatial_reduction_dx", spatial_reduction_dx_kernel<Atom>,
             product_tiles(s.patches, s.depth), kThreads, DxProduct<Atom>::kBytes),
      kernel("spatial_reduction_dweight", spatial_reduction_dweight_kernel<Atom>,
             product_tiles(s.depth, s.channels) * split.count, kThreads,
             DweightProduct<Atom>::kBytes),
      kernel("spatial_reduction_sums", spatial_reduction_sums_kernel<Atom>,
             ceil_div(channels / 4 * sizes.sum_splits, kThreads), kThreads, 0)};
  const Fold of_weight{nullptr,  split.count,   1,          weights,     {}, channels,
                       channels, dweight.patch, dweight.in, dweight.out, {}};
  const bool in_fp32 = sizes.norm_in_fp32;
  const Fold of_vectors{nullptr, sizes.sum_splits,         3, channels, {}, 1, channels, 0, 0,
                        1,       {false, in_fp32, in_fp32}};
  const Folds folds{of_weight, of_vectors};
  const Kernel<Folds> fold = fold_kernel_for<Atom>(kernel_name<kFamily>("fold", call.dtype), folds);

  const auto launch = [=](void* const* addresses, void* stream) {
    SpatialReductionBackward p = sizes;
    p.dy = addresses[0];
    p.x.data = addresses[1];
    p.weight = addresses[2];
    p.norm_weight = addresses[3];
    p.normalized = static_cast<const float*>(addresses[4]);
    p.rstd = static_cast<const float*>(addresses[5]);
    p.dx = addresses[6];
    auto* workspace = static_cast<char*>(addresses[11]);
    p.dz = workspace;
    p.dweight_partials = reinterpret_cast<float*>(workspace + dz_bytes);
    p.sum_partials = reinterpret_cast<float*>(workspace + dz_bytes + dweight_bytes);
    for (const Kernels& k : kernels) k.launch(p, stream);
    Folds sums = folds;
    sums.first.partials = p.dweight_partials;
    sums.first.out[0] = addresses[7];
    sums.second.partials = p.sum_partials;
    for (int i = 0; i < 3; ++i) sums.second.out[i] = addresses[8 + i];
    fold.launch(sums, stream);
  };
  return {{"dy", "x", "weight", "norm_weight", "normalized", "rstd", "dx", "dweight", "dbias",
           "dnorm_weight", "dnorm_bias"},
          dz_bytes + dweight_bytes + sum_bytes,
          launch};
}

}  // namespace

template <>
PlanParts plan_spatial_reduction_backward<kFamily>(const pvtk_spatial_reduction& call,
                                                   const SpatialReductionBackward& p,
                                                   const pvtk_weight_strides& dweight) {
  return with_atom<kFamily>(call.dtype,
                            [&](auto atom) { return plan_for<decltype(atom)>(call, p, dweight); });
}

}  // namespace pvt_kernels::cuda
