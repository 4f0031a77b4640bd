// What the launchers need of the CUDA runtime: errors, the current device, launches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/launch.h"

namespace pvt_kernels::cuda {

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

inline int element_size(pvtk_dtype dtype) { return dtype == PVTK_FLOAT32 ? 4 : 2; }

// A call that the launchers refuse, on its way to the pvtk_status that reports it.
struct Refusal : std::runtime_error {
  Refusal(pvtk_code code, const std::string& message) : std::runtime_error(message), code(code) {}
  pvtk_code code;
};

inline void require(bool condition, const std::string& message) {
  if (!condition) throw Refusal(PVTK_INVALID_ARGUMENT, message);
}

// A kernel accesses 16 bytes at a time.
inline bool is_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
}

struct NamedPointer {
  const char* name;
  const void* address;
};

// Of contiguous tensors and the workspace; those without elements may be anywhere.
inline void check_pointers(std::initializer_list<NamedPointer> pointers) {
  for (const auto& [name, address] : pointers)
    require(is_aligned(address),
            std::string(name) + " must have an address that is a multiple of 16");
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
    changed_ = index != previous_;
    // only then, since it may create a context
    if (changed_) check(cudaSetDevice(index), "cudaSetDevice");
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(previous_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// What the current device makes of this build's code.
cudaError_t code_attributes(cudaFuncAttributes& attributes);

// The architecture whose PTX that code was made of, such as 80, here or by the device's driver; or
// as which the build treats every device.
int code_arch();

// "7.5", and why where the build treats the device as such.
std::string describe_code_arch();

// Of the current device.
int multiprocessors();

// Refuses what the current device lacks: a block's shared memory, so many blocks.
void check_launch(std::int64_t blocks, int shared_bytes);

template <class P>
void launch(void (*kernel)(P), std::int64_t blocks, int threads, int shared_bytes, void* stream,
            P parameters) {
  if (blocks == 0) return;
  check_launch(blocks, shared_bytes);
  if (shared_bytes > 0) {
    // for each device and, since that may have been reset, each launch
    const auto set = [&](cudaFuncAttribute attribute, int value) {
      check(cudaFuncSetAttribute(kernel, attribute, value), "cudaFuncSetAttribute");
    };
    set(cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    // left to itself, the driver may leave a multiprocessor room for fewer blocks than fit
    set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  void* arguments[] = {&parameters};
  // with its type, which clang can't deduce from what CUDA 11.8 declares
  check(cudaLaunchKernel<void(P)>(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads),
                                  arguments, shared_bytes, static_cast<cudaStream_t>(stream)),
        "cudaLaunchKernel");
}

}  // namespace pvt_kernels::cuda
