#include "cuda/spatial_reduction_forward.cuh"
#include "cuda/spatial_reduction_launch.cuh"

using namespace pvt_kernels::cuda;

namespace {

// On the current device.
Split split_of(const ReductionSizes& s) {
  return Split(product_tiles(s.patches, s.channels), s.depth);
}

}  // namespace

pvtk_status pvtk_spatial_reduction_forward_workspace(const pvtk_spatial_reduction* call,
                                                     size_t* bytes) {
  return report("spatial_reduction_forward_workspace", [&] {
    const ReductionSizes s = checked_sizes(*call);
    const CurrentDevice device(call->device);
    *bytes = split_of(s).count * s.patches * s.channels * sizeof(float);
  });
}

pvtk_status pvtk_spatial_reduction_forward(const pvtk_spatial_reduction* call, pvtk_tokens x,
                                           const void* weight, const float* bias,
                                           const float* norm_weight, const float* norm_bias,
                                           void* y, float* normalized, float* rstd,
                                           void* workspace) {
  return report("spatial_reduction_forward", [&] {
    const ReductionSizes s = checked_sizes(*call);
    check_alignment(*call, "x", x);
    check_pointers({{"weight", weight},
                    {"bias", bias},
                    {"norm_weight", norm_weight},
                    {"norm_bias", norm_bias},
                    {"y", y},
                    {"normalized", normalized},
                    {"rstd", rstd},
                    {"workspace", workspace}});
    const CurrentDevice device(call->device);
    const Split split = split_of(s);
    const ReductionForward p{
        s, x,          weight, bias,        norm_weight, norm_bias, static_cast<float*>(workspace),
        y, normalized, rstd,   split.count, split.steps};
    with_atom(call->dtype, code_arch(), [&](auto atom) {
      using Atom = decltype(atom);
      launch(reduction_product_kernel<Atom>, product_tiles(s.patches, s.channels) * split.count,
             kThreads, ForwardProduct<Atom>::kBytes, call->stream, p);
      launch(reduction_normalize_kernel<Atom>, ceil_div(s.patches, kWarps), kThreads,
             kWarps * s.channels * sizeof(float), call->stream, p);
    });
  });
}
