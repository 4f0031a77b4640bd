// The C functions of spatial reduction: they check a call and have the device's family make its
// plan.
#include "cuda/dispatch.h"
#include "cuda/runtime.h"
#include "cuda/spatial_reduction_launch.cuh"

using namespace pvt_kernels::cuda;

namespace {

constexpr std::int64_t kMaxChannels = 4096;

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

// x at an address that a launch has.
Tokens checked_tokens(const pvtk_spatial_reduction& call, const pvtk_token_strides& strides) {
  const auto check = [&](const char* dimension, std::int64_t count, std::int64_t stride) {
    require(count <= 1 || stride * element_size(call.dtype) % 16 == 0,
            "x must have strides that are multiples of 16 bytes, got " + std::to_string(stride) +
                " elements for " + dimension);
  };
  check("batch", call.batch, strides.batch);
  check("tokens", call.height * call.width, strides.token);
  return {nullptr, strides.batch, strides.token};
}

}  // namespace

pvtk_status pvtk_plan_spatial_reduction_forward(const pvtk_spatial_reduction* call,
                                                pvtk_token_strides x, int saves, pvtk_plan** plan) {
  return make_plan("spatial_reduction_forward", call->device, plan, [&] {
    SpatialReductionForward p{checked_sizes(*call)};
    p.x = checked_tokens(*call, x);
    p.norm_in_fp32 = call->norm_dtype == PVTK_FLOAT32;
    const CurrentDevice device(call->device);
    return with_family([&](auto family) {
      return plan_spatial_reduction_forward<family.value>(*call, p, saves != 0);
    });
  });
}

pvtk_status pvtk_plan_spatial_reduction_backward(const pvtk_spatial_reduction* call,
                                                 pvtk_token_strides x, pvtk_weight_strides dweight,
                                                 int adds, pvtk_plan** plan) {
  return make_plan("spatial_reduction_backward", call->device, plan, [&] {
    SpatialReductionBackward p{checked_sizes(*call)};
    p.x = checked_tokens(*call, x);
    p.dx_batch_stride = call->height * call->width * call->channels;
    p.norm_in_fp32 = call->norm_dtype == PVTK_FLOAT32;
    p.adds = adds != 0;
    const CurrentDevice device(call->device);
    return with_family([&](auto family) {
      return plan_spatial_reduction_backward<family.value>(*call, p, dweight);
    });
  });
}
