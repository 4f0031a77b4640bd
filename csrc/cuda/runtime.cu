#include <cstdio>
#include <limits>
#include <mutex>

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

// Errors of f() say which kernel it is about.
template <class F>
void named(const Grid& grid, F f) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(grid.kernel + ", " + std::to_string(grid.blocks) + " blocks of " +
                             std::to_string(grid.threads) + " threads with " +
                             std::to_string(grid.shared_bytes) +
                             " bytes of shared memory: " + error.what());
  }
}

void require_aligned(const pvtk_plan& plan, std::size_t index, const void* address) {
  // a kernel accesses 16 bytes at a time
  if (reinterpret_cast<std::uintptr_t>(address) % 16 == 0) return;
  const char* name = index < plan.names.size() ? plan.names[index] : "workspace";
  throw Refusal(PVTK_INVALID_ARGUMENT,
                std::string(name) + " must have an address that is a multiple of 16");
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

void check_grid(const Grid& grid) {
  if (grid.blocks > std::numeric_limits<std::int32_t>::max())
    throw Refusal(PVTK_NOT_SUPPORTED, grid.kernel + " needs " + std::to_string(grid.blocks) +
                                          " blocks of threads; a grid has at most 2^31 - 1");
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (grid.shared_bytes > limit)
    throw Refusal(PVTK_NOT_SUPPORTED, grid.kernel + " needs " + std::to_string(grid.shared_bytes) +
                                          " bytes of shared memory for a block, and the device "
                                          "has " +
                                          std::to_string(limit));
}

void check_launch(cudaError_t error, const Grid& grid) {
  if (error == cudaSuccess) return;
  named(grid, [&] { check(error, "cudaLaunchKernel"); });
}

void allow_shared_memory(const void* kernel, const Grid& grid) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  named(grid, [&] {
    cudaFuncAttributes now;
    check(cudaFuncGetAttributes(&now, kernel), "cudaFuncGetAttributes");
    const auto set = [&](cudaFuncAttribute attribute, int value) {
      check(cudaFuncSetAttribute(kernel, attribute, value), "cudaFuncSetAttribute");
    };
    if (now.maxDynamicSharedSizeBytes < grid.shared_bytes)
      set(cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
    // left to itself, the driver may leave a multiprocessor room for fewer blocks than fit
    set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  });
}

}  // namespace pvt_kernels::cuda

using namespace pvt_kernels::cuda;

size_t pvtk_plan_workspace(const pvtk_plan* plan) { return plan->workspace_bytes; }

void pvtk_plan_destroy(pvtk_plan* plan) { delete plan; }

pvtk_status pvtk_plan_launch(const pvtk_plan* plan, void* stream, void* const* addresses,
                             size_t count) {
  return report(plan->function, [&] {
    if (count != plan->names.size() + 1)
      throw Refusal(PVTK_INVALID_ARGUMENT, "a launch takes " +
                                               std::to_string(plan->names.size() + 1) +
                                               " addresses, got " + std::to_string(count));
    for (std::size_t i = 0; i < count; ++i) require_aligned(*plan, i, addresses[i]);
    const CurrentDevice device(plan->device);
    plan->launch(addresses, stream);
  });
}
