// Stands in for CUDA's header: the same names, run by simt.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// Device functions.

inline float __uint_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline void __syncthreads() { simt::barrier(); }

inline void __syncwarp() { simt::warp_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  if (mask != 0xffffffff) simt::fail("a shuffle of a part of a warp");
  struct Operands {
    T in, out;
    int lane_mask;
  } mine = {value, T{}, lane_mask};
  simt::in_lockstep(mine, [](simt::Lanes<Operands> lanes) {
    for (int i = 0; i < simt::kLanes; ++i) lanes[i]->out = lanes[i ^ lanes[i]->lane_mask]->in;
  });
  return mine.out;
}

// From the lane of that number among `width` neighbours.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width) {
  if (mask != 0xffffffff) simt::fail("a shuffle of a part of a warp");
  struct Operands {
    T in, out;
    int source, width;
  } mine = {value, T{}, source, width};
  simt::in_lockstep(mine, [](simt::Lanes<Operands> lanes) {
    for (int i = 0; i < simt::kLanes; ++i) {
      const int first = i / lanes[i]->width * lanes[i]->width;
      lanes[i]->out = lanes[first + lanes[i]->source % lanes[i]->width]->in;
    }
  });
  return mine.out;
}

// The runtime.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchOutOfResources = 701
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout
};
constexpr int cudaSharedmemCarveoutMaxShared = 100;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
using cudaStream_t = struct CUstream_st*;

struct cudaFuncAttributes {
  int ptxVersion, maxDynamicSharedSizeBytes;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice          ? "invalid device ordinal"
         : error == cudaErrorLaunchOutOfResources ? "too many resources requested for launch"
                                                  : "invalid argument";
}
inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidDevice          ? "cudaErrorInvalidDevice"
         : error == cudaErrorLaunchOutOfResources ? "cudaErrorLaunchOutOfResources"
                                                  : "cudaErrorInvalidValue";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  ++simt::counters.attributes;
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? simt::settings.multiprocessors
               : static_cast<int>(simt::settings.shared_memory_per_block);
  return cudaSuccess;
}

// Of dynamic shared memory: what every kernel may have, and what each was allowed.
constexpr int kSharedMemoryOfAll = 48 * 1024;
inline std::map<const void*, int> allowed_shared_memory;

inline int allowed_to(const void* kernel) {
  const auto found = allowed_shared_memory.find(kernel);
  return found == allowed_shared_memory.end() ? kSharedMemoryOfAll : found->second;
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  ++simt::counters.attributes;
  *attributes = {simt::settings.arch, allowed_to(kernel)};
  return cudaSuccess;
}

template <class T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T* kernel) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute,
                                        int value) {
  ++simt::counters.attributes;
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (static_cast<std::size_t>(value) > simt::settings.shared_memory_per_block)
      return cudaErrorInvalidValue;
    allowed_shared_memory[kernel] = value;
  }
  return cudaSuccess;
}

template <class P>
P parameter_of(void (*)(P));

template <class T>
cudaError_t cudaLaunchKernel(T* kernel, dim3 grid, dim3 block, void** arguments,
                             std::size_t shared_bytes, cudaStream_t) {
  const auto launches = static_cast<int>(simt::counters.launches.size());
  if (launches == simt::settings.failing_launch) return cudaErrorLaunchOutOfResources;
  if (shared_bytes > static_cast<std::size_t>(allowed_to(reinterpret_cast<const void*>(kernel))))
    return cudaErrorInvalidValue;
  simt::counters.launches.emplace_back();
  simt::counters.kernels.push_back(simt::symbol_of(reinterpret_cast<void (*)()>(kernel)));
  const auto& parameters = *static_cast<decltype(parameter_of(kernel))*>(arguments[0]);
  simt::run_grid(grid.x, block.x, shared_bytes, [&] { kernel(parameters); });
  return cudaSuccess;
}
