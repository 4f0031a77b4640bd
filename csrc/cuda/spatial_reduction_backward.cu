#include "cuda/fold_launch.cuh"
#include "cuda/spatial_reduction_backward.cuh"
#include "cuda/spatial_reduction_launch.cuh"

using namespace pvt_kernels::cuda;

namespace {

constexpr std::int64_t kLeastRowsPerSum = 16;

struct Workspace {
  Split split;
  std::int64_t rows_per_sum, sum_splits;
  std::int64_t dz_floats, dweight_floats, sum_floats;

  // On the current device.
  Workspace(const ReductionSizes& s, pvtk_dtype dtype)
      : split(product_tiles(s.depth, s.channels), s.patches) {
    const std::int64_t rows = std::max(s.patches, 1);
    // two blocks a multiprocessor, but no more partial sums than a tenth of what they are of
    const std::int64_t threads = 2 * multiprocessors() * kThreads;
    const std::int64_t wanted = std::max<std::int64_t>(1, threads / (s.channels / 4));
    rows_per_sum = std::max(ceil_div(rows, wanted), kLeastRowsPerSum);
    sum_splits = ceil_div(rows, rows_per_sum);
    // C is a multiple of 8, so every part begins at a multiple of 16 bytes
    dz_floats = std::int64_t{s.patches} * s.channels * element_size(dtype) / sizeof(float);
    dweight_floats = split.count * s.depth * s.channels;
    sum_floats = sum_splits * 3 * s.channels;
  }
};

}  // namespace

pvtk_status pvtk_spatial_reduction_backward_workspace(const pvtk_spatial_reduction* call,
                                                      size_t* bytes) {
  return report("spatial_reduction_backward_workspace", [&] {
    const ReductionSizes s = checked_sizes(*call);
    const CurrentDevice device(call->device);
    const Workspace w(s, call->dtype);
    *bytes = (w.dz_floats + w.dweight_floats + w.sum_floats) * sizeof(float);
  });
}

pvtk_status pvtk_spatial_reduction_backward(const pvtk_spatial_reduction* call, const void* dy,
                                            pvtk_tokens x, const void* weight,
                                            const float* norm_weight, const float* normalized,
                                            const float* rstd, void* dx, void* dweight,
                                            float* dbias, float* dnorm_weight, float* dnorm_bias,
                                            void* workspace) {
  return report("spatial_reduction_backward", [&] {
    const ReductionSizes s = checked_sizes(*call);
    check_alignment(*call, "x", x);
    check_pointers({{"dy", dy},
                    {"weight", weight},
                    {"norm_weight", norm_weight},
                    {"normalized", normalized},
                    {"rstd", rstd},
                    {"dx", dx},
                    {"dweight", dweight},
                    {"dbias", dbias},
                    {"dnorm_weight", dnorm_weight},
                    {"dnorm_bias", dnorm_bias},
                    {"workspace", workspace}});
    const CurrentDevice device(call->device);
    const Workspace w(s, call->dtype);
    auto* dz = static_cast<float*>(workspace);
    ReductionBackward p{};
    p.sizes = s;
    p.dy = dy;
    p.x = x;
    p.dx_batch_stride = call->height * call->width * call->channels;
    p.weight = weight;
    p.norm_weight = norm_weight;
    p.normalized = normalized;
    p.rstd = rstd;
    p.dz = dz;
    p.dx = dx;
    p.dweight_partials = dz + w.dz_floats;
    p.splits = w.split.count;
    p.steps_per_split = w.split.steps;
    p.sum_partials = p.dweight_partials + w.dweight_floats;
    p.sum_splits = w.sum_splits;
    p.rows_per_sum = w.rows_per_sum;
    const std::int64_t channels = s.channels, weights = channels * s.depth;
    with_atom(call->dtype, code_arch(), [&](auto atom) {
      using Atom = decltype(atom);
      launch(reduction_dz_kernel<Atom>, s.patches, kWarpSize, 2 * s.channels * sizeof(float),
             call->stream, p);
      launch(reduction_dx_kernel<Atom>, product_tiles(s.patches, s.depth), kThreads,
             DxProduct<Atom>::kBytes, call->stream, p);
      launch(reduction_dweight_kernel<Atom>, product_tiles(s.depth, s.channels) * w.split.count,
             kThreads, DweightProduct<Atom>::kBytes, call->stream, p);
      launch(reduction_sums_kernel<Atom>, ceil_div(channels / 4 * w.sum_splits, kThreads), kThreads,
             0, call->stream, p);
      launch_fold<Atom>({p.dweight_partials, w.split.count, 1, weights, {dweight}}, call->stream);
    });
    with_atom(PVTK_FLOAT32, code_arch(), [&](auto atom) {
      launch_fold<decltype(atom)>(
          {p.sum_partials, w.sum_splits, 3, channels, {dbias, dnorm_weight, dnorm_bias}},
          call->stream);
    });
  });
}
