// The C functions of spatial reduction: they check a call and hand it to the kernels of the
// device's family.
#include <algorithm>

#include "cuda/blocks.h"
#include "cuda/dispatch.h"
#include "cuda/spatial_reduction_launch.cuh"

using namespace pvt_kernels::cuda;

namespace {

constexpr std::int64_t kMaxChannels = 4096;
constexpr std::int64_t kLeastRowsPerSum = 16;

SpatialReductionSizes checked_sizes(const pvtk_spatial_reduction& call) {
  const std::int64_t R = call.sr_ratio, C = call.channels;
  require(call.batch >= 0, "batch must not be negative, got " + std::to_string(call.batch));
  require(R >= 1, "sr_ratio must be at least 1, got " + std::to_string(R));
  require(call.height >= R, "height must be at least sr_ratio = " + std::to_string(R) + ", got " +
                                std::to_string(call.height));
  require(call.width >= R, "width must be at least sr_ratio = " + std::to_string(R) + ", got " +
                               std::to_string(call.width));
  require(C >= 8 && C <= kMaxChannels && C % 8 == 0,
          "channels must be a multiple of 8 up to 4096, got " + std::to_string(C));
  const std::int64_t across = call.width / R, per_image = call.height / R * across;
  constexpr std::int64_t kMost = 1 << 30;  // the kernels count in 32 bits, beyond the last too
  require(
      call.height * call.width <= kMost && call.batch * per_image <= kMost && R <= kMost / R / C,
      "the tokens of an image, the patches and the values of a patch must each be at most 2^30");
  require(call.norm_dtype == call.dtype || call.norm_dtype == PVTK_FLOAT32,
          "norm_dtype must be the dtype or PVTK_FLOAT32, got " +
              std::to_string(static_cast<int>(call.norm_dtype)));
  return {static_cast<int>(call.width), static_cast<int>(C),
          static_cast<int>(R),          static_cast<int>(across),
          static_cast<int>(per_image),  static_cast<int>(call.batch * per_image),
          static_cast<int>(R * R * C),  call.eps};
}

void check_alignment(const pvtk_spatial_reduction& call, const char* name, const pvtk_tokens& t) {
  const std::int64_t size = element_size(call.dtype);
  require(
      is_aligned(t.data) && (call.batch <= 1 || t.batch_stride * size % 16 == 0) &&
          (call.height * call.width == 1 || t.token_stride * size % 16 == 0),
      std::string(name) + " must have an address and strides (in bytes) that are multiples of 16");
}

// Of the forward's product, on the current device.
Split split_of(const SpatialReductionSizes& s, pvtk_dtype dtype) {
  return product_split(s.patches, s.channels, s.depth, dtype, multiprocessors());
}

struct BackwardWorkspace {
  Split split;
  std::int64_t rows_per_sum, sum_splits;
  std::int64_t dz_floats, dweight_floats, sum_floats;

  // On the current device.
  BackwardWorkspace(const SpatialReductionSizes& s, pvtk_dtype dtype)
      : split(product_split(s.depth, s.channels, s.patches, dtype, multiprocessors())) {
    const std::int64_t rows = std::max(s.patches, 1);
    // two blocks a multiprocessor, but no more partial sums than a tenth of what they are of
    const std::int64_t threads = 2 * multiprocessors() * kThreads;
    const std::int64_t wanted = std::max<std::int64_t>(1, threads / (s.channels / 4));
    rows_per_sum = std::max(ceil_div(rows, wanted), kLeastRowsPerSum);
    sum_splits = ceil_div(rows, rows_per_sum);
    // C is a multiple of 8, so every part begins at a multiple of 16 bytes
    dz_floats = std::int64_t{s.patches} * s.channels * element_size(dtype) / sizeof(float);
    dweight_floats = std::int64_t{split.count} * s.depth * s.channels;
    sum_floats = sum_splits * 3 * s.channels;
  }
};

}  // namespace

pvtk_status pvtk_spatial_reduction_forward_workspace(const pvtk_spatial_reduction* call,
                                                     size_t* bytes) {
  return report("spatial_reduction_forward_workspace", [&] {
    const SpatialReductionSizes s = checked_sizes(*call);
    const CurrentDevice device(call->device);
    *bytes = std::int64_t{split_of(s, call->dtype).count} * s.patches * s.channels * sizeof(float);
  });
}

pvtk_status pvtk_spatial_reduction_forward(const pvtk_spatial_reduction* call, pvtk_tokens x,
                                           const void* weight, const void* bias,
                                           const void* norm_weight, const void* norm_bias, void* y,
                                           float* normalized, float* rstd, void* workspace) {
  return report("spatial_reduction_forward", [&] {
    const SpatialReductionSizes s = checked_sizes(*call);
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
    const Split split = split_of(s, call->dtype);
    const SpatialReductionForward p{s,
                                    x,
                                    weight,
                                    bias,
                                    norm_weight,
                                    norm_bias,
                                    call->norm_dtype == PVTK_FLOAT32,
                                    static_cast<float*>(workspace),
                                    y,
                                    normalized,
                                    rstd,
                                    split.count,
                                    split.steps};
    with_family([&](auto family) { launch_spatial_reduction_forward<family.value>(*call, p); });
  });
}

pvtk_status pvtk_spatial_reduction_backward_workspace(const pvtk_spatial_reduction* call,
                                                      size_t* bytes) {
  return report("spatial_reduction_backward_workspace", [&] {
    const SpatialReductionSizes s = checked_sizes(*call);
    const CurrentDevice device(call->device);
    const BackwardWorkspace w(s, call->dtype);
    *bytes = (w.dz_floats + w.dweight_floats + w.sum_floats) * sizeof(float);
  });
}

pvtk_status pvtk_spatial_reduction_backward(const pvtk_spatial_reduction* call, const void* dy,
                                            pvtk_tokens x, const void* weight,
                                            const void* norm_weight, const float* normalized,
                                            const float* rstd, void* dx, int add,
                                            pvtk_dweight dweight, void* dbias, void* dnorm_weight,
                                            void* dnorm_bias, void* workspace) {
  return report("spatial_reduction_backward", [&] {
    const SpatialReductionSizes s = checked_sizes(*call);
    check_alignment(*call, "x", x);
    check_pointers({{"dy", dy},
                    {"weight", weight},
                    {"norm_weight", norm_weight},
                    {"normalized", normalized},
                    {"rstd", rstd},
                    {"dx", dx},
                    {"dweight", dweight.data},
                    {"dbias", dbias},
                    {"dnorm_weight", dnorm_weight},
                    {"dnorm_bias", dnorm_bias},
                    {"workspace", workspace}});
    const CurrentDevice device(call->device);
    const BackwardWorkspace w(s, call->dtype);
    auto* dz = static_cast<float*>(workspace);
    float* dweight_partials = dz + w.dz_floats;
    float* sum_partials = dweight_partials + w.dweight_floats;
    const std::int64_t dx_batch_stride = call->height * call->width * call->channels;
    const SpatialReductionBackward p{s,
                                     dy,
                                     x,
                                     dx_batch_stride,
                                     weight,
                                     norm_weight,
                                     call->norm_dtype == PVTK_FLOAT32,
                                     normalized,
                                     rstd,
                                     dz,
                                     dx,
                                     add != 0,
                                     dweight_partials,
                                     w.split.count,
                                     w.split.steps,
                                     sum_partials,
                                     w.sum_splits,
                                     w.rows_per_sum};
    with_family([&](auto family) {
      launch_spatial_reduction_backward<family.value>(*call, p, dweight, dbias, dnorm_weight,
                                                      dnorm_bias);
    });
  });
}
