#include <stdexcept>

#include "build_info.h"
#include "cuda/device.h"

namespace pvt_kernels {

std::vector<CudaDevice> cuda_devices() {
  throw std::runtime_error("pvt_kernels was built without CUDA: " +
                           build_info().cuda_missing.value());
}

}  // namespace pvt_kernels
