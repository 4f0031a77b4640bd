// What the launchers need of the CUDA runtime: errors, the current device, launches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace pvt_kernels::cuda {

// A call that the launchers refuse, on its way to the pvtk_status that reports it.
struct Refusal : std::runtime_error {
  Refusal(pvtk_code code, const std::string& message) : std::runtime_error(message), code(code) {}
  pvtk_code code;
};

inline void require(bool condition, const std::string& message) {
  if (!condition) throw Refusal(PVTK_INVALID_ARGUMENT, message);
}

// "out of memory (cudaErrorMemoryAllocation)"
std::string describe(cudaError_t error);

// Throws std::runtime_error, which names the call.
void check(cudaError_t error, const char* call);

// Runs f() and reports what it throws.
pvtk_status report(const char* function, void (*f)(void*), void* context) noexcept;
template <class F>
pvtk_status report(const char* function, F f) noexcept {
  return report(function, [](void* context) { (*static_cast<F*>(context))(); }, &f);
}

// Puts the caller's current device back, also when an error is thrown.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    check(cudaSetDevice(index), "cudaSetDevice");
  }
  ~CurrentDevice() { cudaSetDevice(previous_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
};

// The architecture that the current device's code was compiled for, such as 80: the device's own
// or that of the PTX that its driver compiled.
int code_arch();

// Of the current device.
int multiprocessors();

// Refuses what the current device lacks: a block's shared memory, so many blocks.
void check_launch(std::int64_t blocks, int shared_bytes);

template <class P>
void launch(void (*kernel)(P), std::int64_t blocks, int threads, int shared_bytes, void* stream,
            P parameters) {
  if (blocks == 0) return;
  check_launch(blocks, shared_bytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "cudaFuncSetAttribute");
  void* arguments[] = {&parameters};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments,
                         shared_bytes, static_cast<cudaStream_t>(stream)),
        "cudaLaunchKernel");
}

}  // namespace pvt_kernels::cuda
