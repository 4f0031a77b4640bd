#include "cuda/blocks.h"
#include "cuda/family.cuh"
#include "cuda/fold_launch.cuh"
#include "cuda/spatial_reduction_backward.cuh"

namespace pvt_kernels::cuda {

template <>
void launch_spatial_reduction_backward<kFamily>(const pvtk_spatial_reduction& call,
                                                const SpatialReductionBackward& p,
                                                pvtk_dweight dweight, void* dbias,
                                                void* dnorm_weight, void* dnorm_bias) {
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
    const Fold of_weight{p.dweight_partials, p.splits,    1,        weights,
                         {dweight.data},     channels,    channels, dweight.patch,
                         dweight.in,         dweight.out, {}};
    const Fold of_vectors{p.sum_partials,
                          p.sum_splits,
                          3,
                          channels,
                          {dbias, dnorm_weight, dnorm_bias},
                          1,
                          channels,
                          0,
                          0,
                          1,
                          {false, p.norm_in_fp32, p.norm_in_fp32}};
    launch_folds<Atom>({of_weight, of_vectors}, call.stream);
  });
}

}  // namespace pvt_kernels::cuda
