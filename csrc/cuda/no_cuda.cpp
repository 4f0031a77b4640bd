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

pvtk_status pvtk_attention_forward(const pvtk_attention*, pvtk_heads, pvtk_heads, pvtk_heads, void*,
                                   float*) {
  return not_supported();
}

pvtk_status pvtk_attention_backward_workspace(const pvtk_attention*, size_t*) {
  return not_supported();
}

pvtk_status pvtk_attention_backward(const pvtk_attention*, pvtk_heads, pvtk_heads, pvtk_heads,
                                    pvtk_heads, pvtk_heads, const float*, void*, void*, void*,
                                    int64_t, void*) {
  return not_supported();
}

pvtk_status pvtk_spatial_reduction_forward_workspace(const pvtk_spatial_reduction*, size_t*) {
  return not_supported();
}

pvtk_status pvtk_spatial_reduction_forward(const pvtk_spatial_reduction*, pvtk_tokens, const void*,
                                           const void*, const void*, const void*, void*, float*,
                                           float*, void*) {
  return not_supported();
}

pvtk_status pvtk_spatial_reduction_backward_workspace(const pvtk_spatial_reduction*, size_t*) {
  return not_supported();
}

pvtk_status pvtk_spatial_reduction_backward(const pvtk_spatial_reduction*, const void*, pvtk_tokens,
                                            const void*, const void*, const float*, const float*,
                                            void*, int, pvtk_dweight, void*, void*, void*, void*) {
  return not_supported();
}

pvtk_status pvtk_hidden_forward(const pvtk_hidden*, const void*, const void*, const void*, void*) {
  return not_supported();
}

pvtk_status pvtk_hidden_parts(const pvtk_hidden*, int64_t*) { return not_supported(); }

pvtk_status pvtk_hidden_dc(const pvtk_hidden*, const void*, const void*, const void*, void*, void*,
                           float*) {
  return not_supported();
}

pvtk_status pvtk_hidden_dh(const pvtk_hidden*, const void*, const void*, void*, float*) {
  return not_supported();
}
