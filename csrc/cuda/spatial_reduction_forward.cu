#include "cuda/blocks.h"
#include "cuda/family.cuh"
#include "cuda/spatial_reduction_forward.cuh"

namespace pvt_kernels::cuda {
namespace {

template <class Atom>
PlanParts plan_for(const pvtk_spatial_reduction& call, SpatialReductionForward sizes, bool saves) {
  const SpatialReductionSizes& s = sizes.sizes;
  const Split split = product_split(s.patches, s.channels, s.depth, call.dtype, multiprocessors());
  sizes.splits = split.count;
  sizes.steps_per_split = split.steps;
  const std::int64_t values = std::int64_t{s.patches} * s.channels;
  // each a multiple of 16, since there are a multiple of 8 channels
  const std::int64_t partial_bytes = split.count * values * sizeof(float);
  const std::int64_t normalized_bytes = values * sizeof(float);
  const auto kernel = [&](const char* name, auto function, std::int64_t blocks, int shared_bytes) {
    return Kernel<SpatialReductionForward>(kernel_name<kFamily>(name, call.dtype), function, blocks,
                                           kThreads, shared_bytes);
  };
  const auto product =
      kernel("spatial_reduction_product", spatial_reduction_product_kernel<Atom>,
             product_tiles(s.patches, s.channels) * split.count, ForwardProduct<Atom>::kBytes);
  const auto normalize =
      kernel("spatial_reduction_normalize", spatial_reduction_normalize_kernel<Atom>,
             ceil_div(s.patches, kWarps), kWarps * s.channels * sizeof(float));

  PlanParts plan{{"x", "weight", "bias", "norm_weight", "norm_bias", "y"}, partial_bytes, {}};
  if (saves)
    plan.names.insert(plan.names.end(), {"normalized", "rstd"});
  else
    plan.workspace_bytes += normalized_bytes + s.patches * sizeof(float);
  plan.launch = [=](void* const* addresses, void* stream) {
    SpatialReductionForward p = sizes;
    p.x.data = addresses[0];
    p.weight = addresses[1];
    p.bias = addresses[2];
    p.norm_weight = addresses[3];
    p.norm_bias = addresses[4];
    p.y = addresses[5];
    auto* workspace = static_cast<char*>(addresses[saves ? 8 : 6]);
    p.partials = reinterpret_cast<float*>(workspace);
    workspace += partial_bytes;
    p.normalized = static_cast<float*>(saves ? addresses[6] : workspace);
    p.rstd = static_cast<float*>(saves ? addresses[7] : workspace + normalized_bytes);
    product.launch(p, stream);
    normalize.launch(p, stream);
  };
  return plan;
}

}  // namespace

template <>
PlanParts plan_spatial_reduction_forward<kFamily>(const pvtk_spatial_reduction& call,
                                                  const SpatialReductionForward& p, bool saves) {
  return with_atom<kFamily>(call.dtype,
                            [&](auto atom) { return plan_for<decltype(atom)>(call, p, saves); });
}

}  // namespace pvt_kernels::cuda
