#include <cstdio>

#include "cuda/runtime.h"

namespace pvt_kernels::cuda {
namespace {

// Compiled for the same architectures as every kernel of the build, so it stands for them all.
__global__ void probe(int) {}

// Of the current device.
int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

std::string describe(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  // Reported here; left in place, it would also fail the next call of another library.
  cudaGetLastError();
  throw std::runtime_error(std::string(call) + " failed: " + describe(error));
}

pvtk_status report(const char* function, void (*f)(void*), void* context) noexcept {
  pvtk_status status = {PVTK_OK, ""};
  const auto fail = [&](pvtk_code code, const char* what) {
    status.code = code;
    std::snprintf(status.message, sizeof(status.message), "%s: %s", function, what);
  };
  try {
    f(context);
  } catch (const Refusal& refusal) {
    fail(refusal.code, refusal.what());
  } catch (const std::exception& error) {
    fail(PVTK_CUDA_ERROR, error.what());
  }
  return status;
}

cudaError_t code_attributes(cudaFuncAttributes& attributes) {
  return cudaFuncGetAttributes(&attributes, probe);
}

int code_arch() {
#ifdef PVT_KERNELS_TREAT_AS_ARCH
  return PVT_KERNELS_TREAT_AS_ARCH;
#else
  cudaFuncAttributes attributes;
  check(code_attributes(attributes), "cudaFuncGetAttributes");
  return attributes.ptxVersion;
#endif
}

std::string describe_code_arch() {
  const int arch = code_arch();
  std::string text = std::to_string(arch / 10) + "." + std::to_string(arch % 10);
#ifdef PVT_KERNELS_TREAT_AS_ARCH
  text += ", since it was built with PVT_KERNELS_TREAT_AS_ARCH=" + std::to_string(arch);
#endif
  return text;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

void check_launch(std::int64_t blocks, int shared_bytes) {
  if (blocks > std::numeric_limits<std::int32_t>::max())
    throw Refusal(PVTK_NOT_SUPPORTED, "the call needs " + std::to_string(blocks) +
                                          " blocks of threads; a grid has at most 2^31 - 1");
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (shared_bytes > limit)
    throw Refusal(PVTK_NOT_SUPPORTED, "the call needs " + std::to_string(shared_bytes) +
                                          " bytes of shared memory for a block, and the device "
                                          "has " +
                                          std::to_string(limit));
}

}  // namespace pvt_kernels::cuda
