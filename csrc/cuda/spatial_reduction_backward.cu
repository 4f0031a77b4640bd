#include "cuda/blocks.h"
#include "cuda/family.cuh"
#include "cuda/fold_launch.cuh"
#include "cuda/spatial_reduction_backward.cuh"

namespace pvt_kernels::cuda {

template <>
void launch_spatial_reduction_backward<kFamily>(const pvtk_spatial_reduction& call,
                                                const SpatialReductionBackward& p, void* dweight,
                                                float* dbias, float* dnorm_weight,
                                                float* dnorm_bias) {
  const SpatialReductionSizes& s = p.sizes;
  const std::int64_t channels = s.channels, weights = channels * s.depth;
  with_atom<kFamily>(call.dtype, [&](auto atom) {
    using Atom = decltype(atom);
    launch(spatial_reduction_dz_kernel<Atom>, s.patches, kWarpSize, 2 * s.channels * sizeof(float),
           call.stream, p);
    launch(spatial_reduction_dx_kernel<Atom>, product_tiles(s.patches, s.depth), kThreads,
           DxProduct<Atom>::kBytes, call.stream, p);
    launch(spatial_reduction_dweight_kernel<Atom>, product_tiles(s.depth, s.channels) * p.splits,
           kThreads, DweightProduct<Atom>::kBytes, call.stream, p);
    launch(spatial_reduction_sums_kernel<Atom>, ceil_div(channels / 4 * p.sum_splits, kThreads),
           kThreads, 0, call.stream, p);
    launch_fold<Atom>({p.dweight_partials, p.splits, 1, weights, {dweight}}, call.stream);
  });
  with_atom<kFamily>(PVTK_FLOAT32, [&](auto atom) {
    launch_fold<decltype(atom)>(
        {p.sum_partials, p.sum_splits, 3, channels, {dbias, dnorm_weight, dnorm_bias}},
        call.stream);
  });
}

}  // namespace pvt_kernels::cuda
