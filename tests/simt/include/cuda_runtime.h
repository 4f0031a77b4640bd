// Stands in for CUDA's header: the same names, run by simt.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
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

inline void __syncthreads() { simt::barrier(); }

inline void __syncwarp() {
  char nothing = 0;
  simt::in_lockstep(nothing, [](simt::Lanes<char>) {});
}

inline float __shfl_xor_sync(unsigned mask, float value, int lane_mask) {
  if (mask != 0xffffffff) simt::fail("a shuffle of a part of a warp");
  struct Operands {
    float in, out;
    int lane_mask;
  } mine = {value, 0.0f, lane_mask};
  simt::in_lockstep(mine, [](simt::Lanes<Operands> lanes) {
    for (int i = 0; i < simt::kLanes; ++i) lanes[i]->out = lanes[i ^ lanes[i]->lane_mask]->in;
  });
  return mine.out;
}

// The runtime.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
using cudaStream_t = struct CUstream_st*;

struct cudaFuncAttributes {
  int ptxVersion;
};

inline const char* cudaGetErrorString(cudaError_t) { return "invalid device ordinal"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidDevice"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? simt::settings.multiprocessors
               : static_cast<int>(simt::settings.shared_memory_per_block);
  return cudaSuccess;
}

template <class T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T*) {
  attributes->ptxVersion = simt::settings.arch;
  return cudaSuccess;
}

template <class T>
cudaError_t cudaFuncSetAttribute(T*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <class P>
cudaError_t cudaLaunchKernel(void (*kernel)(P), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared_bytes, cudaStream_t) {
  const P& parameters = *static_cast<P*>(arguments[0]);
  simt::run_grid(grid.x, block.x, shared_bytes, [&] { kernel(parameters); });
  return cudaSuccess;
}
