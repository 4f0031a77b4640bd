#include "cuda/device.h"

#include <algorithm>
#include <stdexcept>

#include "build_info.h"
#include "cuda/runtime.h"

namespace pvt_kernels {
namespace {

using cuda::check;
using cuda::CurrentDevice;
using cuda::describe;

int device_count() {
  // Without a driver the runtime reports a driver that is too old, which misleads.
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  if (driver == 0) throw std::runtime_error("no CUDA driver is installed");

  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) {
    cudaGetLastError();
    return 0;
  }
  check(error, "cudaGetDeviceCount");
  return count;
}

bool says_no_usable_code(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
         error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidPtx ||
         error == cudaErrorJitCompilerNotFound || error == cudaErrorJitCompilationDisabled;
}

void find_code(CudaDevice& device) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cuda::code_attributes(attributes);
  if (says_no_usable_code(error)) {
    cudaGetLastError();
    device.code_missing = describe(error);
    return;
  }
  check(error, "cudaFuncGetAttributes");

  const std::vector<std::string> archs = build_info().cuda_archs;
  const std::string machine_code = "sm_" + std::to_string(attributes.binaryVersion);
  const bool compiled = std::find(archs.begin(), archs.end(), machine_code) != archs.end();
  device.code = compiled ? machine_code : "compute_" + std::to_string(attributes.ptxVersion);
}

CudaDevice inspect(int index) {
  const CurrentDevice current(index);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");

  CudaDevice device;
  device.name = properties.name;
  device.major = properties.major;
  device.minor = properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.shared_memory_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
  find_code(device);
  return device;
}

}  // namespace

std::vector<CudaDevice> cuda_devices() {
  std::vector<CudaDevice> devices;
  const int count = device_count();
  for (int index = 0; index < count; ++index) devices.push_back(inspect(index));
  return devices;
}

CudaDevice cuda_device(int index) {
  const int count = device_count();
  if (index < 0 || index >= count)
    throw std::runtime_error("there is no CUDA device " + std::to_string(index) + ": " +
                             std::to_string(count) + " are visible");
  return inspect(index);
}

}  // namespace pvt_kernels
