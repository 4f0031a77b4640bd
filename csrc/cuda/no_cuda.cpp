// What stands in for the CUDA sources in a build without CUDA.
#include <cstdio>
#include <stdexcept>

#include "build_info.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace {

std::string message() {
  return "pvt_kernels was built without CUDA: " + pvt_kernels::build_info().cuda_missing.value();
}

pvtk_status not_supported() {
  pvtk_status status = {PVTK_NOT_SUPPORTED, ""};
  std::snprintf(status.message, sizeof(status.message), "%s", message().c_str());
  return status;
}

}  // namespace

namespace pvt_kernels {

std::vector<CudaDevice> cuda_devices() { throw std::runtime_error(message()); }
CudaDevice cuda_device(int) { throw std::runtime_error(message()); }

}  // namespace pvt_kernels

// There are no plans.
size_t pvtk_plan_workspace(const pvtk_plan*) { return 0; }
void pvtk_plan_destroy(pvtk_plan*) {}
pvtk_status pvtk_plan_launch(const pvtk_plan*, void*, void* const*, size_t) {
  return not_supported();
}

pvtk_status pvtk_plan_attention_forward(const pvtk_attention*, pvtk_head_strides, pvtk_head_strides,
                                        pvtk_head_strides, int, pvtk_plan**) {
  return not_supported();
}

pvtk_status pvtk_plan_attention_backward(const pvtk_attention*, pvtk_head_strides,
                                         pvtk_head_strides, pvtk_head_strides, pvtk_head_strides,
                                         pvtk_head_strides, int64_t, pvtk_plan**) {
  return not_supported();
}

pvtk_status pvtk_plan_spatial_reduction_forward(const pvtk_spatial_reduction*, pvtk_token_strides,
                                                int, pvtk_plan**) {
  return not_supported();
}

pvtk_status pvtk_plan_spatial_reduction_backward(const pvtk_spatial_reduction*, pvtk_token_strides,
                                                 pvtk_weight_strides, int, pvtk_plan**) {
  return not_supported();
}

pvtk_status pvtk_hidden_parts(const pvtk_hidden*, int64_t*) { return not_supported(); }

pvtk_status pvtk_plan_hidden_forward(const pvtk_hidden*, pvtk_plan**) { return not_supported(); }

pvtk_status pvtk_plan_hidden_dc(const pvtk_hidden*, pvtk_plan**) { return not_supported(); }

pvtk_status pvtk_plan_hidden_dh(const pvtk_hidden*, pvtk_plan**) { return not_supported(); }
