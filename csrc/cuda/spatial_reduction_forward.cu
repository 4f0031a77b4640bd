#include "cuda/blocks.h"
#include "cuda/family.cuh"
#include "cuda/spatial_reduction_forward.cuh"

namespace pvt_kernels::cuda {

template <>
void launch_spatial_reduction_forward<kFamily>(const pvtk_spatial_reduction& call,
                                               const SpatialReductionForward& p) {
  const SpatialReductionSizes& s = p.sizes;
  with_atom<kFamily>(call.dtype, [&](auto atom) {
    using Atom = decltype(atom);
    launch(spatial_reduction_product_kernel<Atom>, product_tiles(s.patches, s.channels) * p.splits,
           kThreads, ForwardProduct<Atom>::kBytes, call.stream, p);
    launch(spatial_reduction_normalize_kernel<Atom>, ceil_div(s.patches, kWarps), kThreads,
           kWarps * s.channels * sizeof(float), call.stream, p);
  });
}

}  // namespace pvt_kernels::cuda
