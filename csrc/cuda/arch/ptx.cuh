// The instructions that CUDA C++ has no name for, one function each, and the accesses to global
// memory. Sections are named by their titles in the PTX ISA.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pvt_kernels::cuda::ptx {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

template <int kBytes>
struct Bits;
template <>
struct Bits<4> {
  using Type = std::uint32_t;
};
template <>
struct Bits<8> {
  using Type = uint2;
};
template <>
struct Bits<16> {
  using Type = uint4;
};

// Through the read-only path: nothing that a kernel loads so is written while it runs.
template <class V>
__device__ __forceinline__ V load_global(const V* address) {
  using Type = typename Bits<sizeof(V)>::Type;
  const Type bits = __ldg(reinterpret_cast<const Type*>(address));
  V value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Not through that path: what the same thread writes later.
template <class V>
__device__ __forceinline__ V load_own(const V* address) {
  return *address;
}

template <class V>
__device__ __forceinline__ void store_global(V* address, const V& value) {
  *address = value;
}

// What another block of the same kernel may have written, before wait_for() said so.
template <class V>
__device__ __forceinline__ V load_written(const V* address) {
  return __ldcg(address);
}

// The number of calls before this one.
__device__ __forceinline__ unsigned take_ticket(unsigned* next) { return atomicAdd(next, 1u); }

// "Memory Consistency Model": who has seen the number that another block published sees what was
// written before it was. It only grows.
__device__ __forceinline__ void publish(unsigned* number, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" : : "l"(number), "r"(value) : "memory");
}
__device__ __forceinline__ void wait_for(const unsigned* number, unsigned least) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(number) : "memory");
  } while (seen < least);
}

// Accesses to shared memory, which the tests watch.
template <class V>
__device__ __forceinline__ V load_shared(const V* address) {
  return *address;
}

template <class V>
__device__ __forceinline__ void store_shared(V* address, const V& value) {
  *address = value;
}

// blockIdx.x, read anew each time: what depends on it need not stay in registers in between.
__device__ __forceinline__ unsigned block_index() {
  unsigned index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

// "ex2": 2 to the power of x, where the result is a normal number; else 0.
__device__ __forceinline__ float exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// "cp.async": copies 16 bytes to shared memory, or writes 16 zero bytes for a null
// source. Every source has to be a valid address even where no byte of it is read.
__device__ __forceinline__ void copy_async(void* shared, const void* global, const void* valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global ? global : valid), "r"(global ? 16 : 0)
               : "memory");
}

// "cp.async.wait_all": the calling thread's copies have arrived.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" : : : "memory");
}

// "Warp-level matrix load instruction: ldmatrix": lanes 8i to 8i+7 give the addresses of the 8 rows
// (16 bytes each) of matrix i; lane l receives of each matrix elements 2*(l%4) and the next of row
// l/4.
__device__ __forceinline__ void load_matrices(std::uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of each matrix's transpose.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}

// "Matrix Fragments for mma.m8n8k4 with .f16 floating point type": c += a b in every quad pair, as
// in sm70.cuh; c0 are a lane's first 4 results, c1 the other.
template <bool kAByRow, bool kBByRow>
__device__ __forceinline__ void mma_m8n8k4(float (&c0)[4], float (&c1)[4],
                                           const std::uint32_t (&a)[2],
                                           const std::uint32_t (&b)[2]) {
#define PVTK_MMA_M8N8K4(A, B)                                                                  \
  asm volatile("mma.sync.aligned.m8n8k4." A "." B                                              \
               ".f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, "                           \
               "{%8, %9}, {%10, %11}, {%0, %1, %2, %3, %4, %5, %6, %7};"                       \
               : "+f"(c0[0]), "+f"(c0[1]), "+f"(c0[2]), "+f"(c0[3]), "+f"(c1[0]), "+f"(c1[1]), \
                 "+f"(c1[2]), "+f"(c1[3])                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]))
  if constexpr (kAByRow && kBByRow)
    PVTK_MMA_M8N8K4("row", "row");
  else if constexpr (kAByRow)
    PVTK_MMA_M8N8K4("row", "col");
  else if constexpr (kBByRow)
    PVTK_MMA_M8N8K4("col", "row");
  else
    PVTK_MMA_M8N8K4("col", "col");
#undef PVTK_MMA_M8N8K4
}

// "Matrix Fragments for mma.m16n8k8", fp16 operands: c += a b, as in sm75.cuh.
__device__ __forceinline__ void mma_m16n8k8(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                            std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// "Matrix Fragments for mma.m16n8k16 with floating point type": c += a b, as in mma_sync.cuh.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&c)[4], const std::uint32_t (&a)[4],
                                                 std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// "cvt": two numbers rounded to the nearest bf16, ties to even, `low` in the lower half.
__device__ __forceinline__ std::uint32_t round_to_bf16x2(float low, float high) {
  std::uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

}  // namespace pvt_kernels::cuda::ptx
