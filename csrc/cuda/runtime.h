// What the launchers need of the CUDA runtime: errors, the current device, kernels and plans.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/launch.h"

// What a function launches, as it lies behind the C functions.
struct pvtk_plan {
  using Launch = std::function<void(void* const* addresses, void* stream)>;

  const char* function;
  int device;
  std::vector<const char*> names;  // of the addresses, but for the workspace, the last
  std::size_t workspace_bytes;
  Launch launch;  // on the current device
};

namespace pvt_kernels::cuda {

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

inline int element_size(pvtk_dtype dtype) { return dtype == PVTK_FLOAT32 ? 4 : 2; }

// A part of the workspace ends where the next one may begin.
inline std::int64_t padded_bytes(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

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

// What a plan is made of.
struct PlanParts {
  std::vector<const char*> names;
  std::int64_t workspace_bytes;
  pvtk_plan::Launch launch;
};

// Makes a plan of what f() returns for the device.
template <class F>
pvtk_status make_plan(const char* function, int device, pvtk_plan** plan, F f) noexcept {
  return report(function, [&] {
    PlanParts parts = f();
    *plan = new pvtk_plan{function, device, std::move(parts.names),
                          static_cast<std::size_t>(parts.workspace_bytes), std::move(parts.launch)};
  });
}

// What the current device makes of this build's code.
cudaError_t code_attributes(cudaFuncAttributes& attributes);

// The architecture whose PTX that code was made of, such as 80, here or by the device's driver; or
// as which the build treats every device.
int code_arch();

// "7.5", and why where the build treats the device as such.
std::string describe_code_arch();

// Of the current device.
int multiprocessors();

// A kernel's blocks of threads, each with dynamic shared memory.
struct Grid {
  std::string kernel;  // its name, for errors
  std::int64_t blocks;
  int threads, shared_bytes;
};

// Refuses what the current device lacks: a block's shared memory, so many blocks.
void check_grid(const Grid& grid);

// Throws std::runtime_error, which names the kernel.
void check_launch(cudaError_t error, const Grid& grid);

// Lets the kernel have the grid's shared memory on the current device. Other plans may launch it
// with more or with less, so that what it may have only grows.
void allow_shared_memory(const void* kernel, const Grid& grid);

// A kernel with its grid, on the device that was current when it was made.
template <class P>
class Kernel {
 public:
  Kernel(std::string name, void (*kernel)(P), std::int64_t blocks, int threads, int shared_bytes)
      : kernel_(kernel), grid_{std::move(name), blocks, threads, shared_bytes} {
    check_grid(grid_);
    if (shared_bytes > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel), grid_);
  }

  void launch(const P& parameters, void* stream) const {
    if (grid_.blocks == 0) return;
    void* arguments[] = {const_cast<P*>(&parameters)};
    // with its type, which clang can't deduce from what CUDA 11.8 declares
    check_launch(cudaLaunchKernel<void(P)>(kernel_, dim3(static_cast<unsigned>(grid_.blocks)),
                                           dim3(grid_.threads), arguments, grid_.shared_bytes,
                                           static_cast<cudaStream_t>(stream)),
                 grid_);
  }

 private:
  void (*kernel_)(P);
  Grid grid_;
};

}  // namespace pvt_kernels::cuda
