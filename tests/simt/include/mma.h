// Stands in for CUDA's header: nvcuda::wmma 16 x 16 x 16 of fp16 with fp32 accumulators. A lane
// holds 8 values of each matrix, in an order that no architecture has, since none is promised.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda_fp16.h"
#include "simt.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };

template <class Use, int kM, int kN, int kK, class T, class Order = void>
struct fragment {
  static_assert(kM == 16 && kN == 16 && kK == 16);
  T x[8];
};

// The matrix element, row by row, that a lane's value i is.
inline int element_of(int lane, int i) { return (37 * (lane * 8 + i) + 11) % 256; }

template <class T>
void check_tile(const T* address, unsigned stride, simt::Access kind) {
  if (reinterpret_cast<std::uintptr_t>(address) % 32 != 0)
    simt::fail("wmma needs addresses that are multiples of 32");
  if (stride * sizeof(T) % 16 != 0) simt::fail("wmma needs strides that are multiples of 16 bytes");
  // which lane accesses what, only the hardware knows; one says it for all
  if (threadIdx.x % simt::kLanes != 0) return;
  for (int row = 0; row < 16; ++row)
    simt::access_shared_by_warp(address + row * stride, 16 * sizeof(T), kind);
}

template <class Use, class T, class Order>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Order>& part, const T* address,
                      unsigned stride) {
  check_tile(address, stride, simt::Access::load);
  for (int i = 0; i < 8; ++i) {
    const int element = element_of(threadIdx.x % simt::kLanes, i);
    const int row = element / 16, column = element % 16;
    part.x[i] = std::is_same_v<Order, row_major> ? address[row * stride + column]
                                                 : address[column * stride + row];
  }
  // the lanes meet, which orders no access to memory
  char nothing = 0;
  simt::in_lockstep(nothing, [](simt::Lanes<char>) {});
}

inline void store_matrix_sync(float* address, const fragment<accumulator, 16, 16, 16, float>& part,
                              unsigned stride, layout_t) {
  check_tile(address, stride, simt::Access::store);
  for (int i = 0; i < 8; ++i) {
    const int element = element_of(threadIdx.x % simt::kLanes, i);
    address[element / 16 * stride + element % 16] = part.x[i];
  }
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float>& part, float value) {
  for (float& x : part.x) x = value;
}

template <class A, class B>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d, const A& a, const B& b,
              const fragment<accumulator, 16, 16, 16, float>& c) {
  struct Operands {
    const A& a;
    const B& b;
    const fragment<accumulator, 16, 16, 16, float>& c;
    float d[8];
  } mine{a, b, c, {}};
  simt::in_lockstep(mine, [](simt::Lanes<Operands> lanes) {
    float a[256], b[256];
    for (int lane = 0; lane < simt::kLanes; ++lane)
      for (int i = 0; i < 8; ++i) {
        a[element_of(lane, i)] = lanes[lane]->a.x[i];
        b[element_of(lane, i)] = lanes[lane]->b.x[i];
      }
    for (int lane = 0; lane < simt::kLanes; ++lane)
      for (int i = 0; i < 8; ++i) {
        const int row = element_of(lane, i) / 16, column = element_of(lane, i) % 16;
        float sum = lanes[lane]->c.x[i];
        for (int k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[k * 16 + column];
        lanes[lane]->d[i] = sum;
      }
  });
  for (int i = 0; i < 8; ++i) d.x[i] = mine.d[i];
}

}  // namespace nvcuda::wmma
