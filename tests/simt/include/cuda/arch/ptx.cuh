// Stands in for csrc/cuda/arch/ptx.cuh: the instructions by the lane layouts that the PTX ISA gives
// in the sections named there, written from those formulas and not from the kernels' use of them.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace pvt_kernels::cuda::ptx {

template <class V>
V load_global(const V* address) {
  simt::counters.loaded += sizeof(V);
  return *address;
}

template <class V>
void store_global(V* address, const V& value) {
  simt::counters.stored += sizeof(V);
  *address = value;
}

// Copies that a thread began and that have not arrived.
struct Copy {
  void* shared;
  const void* global;
};
inline std::vector<Copy> copies_under_way[1024];

inline void copy_async(void* shared, const void* global, const void* valid) {
  if (valid == nullptr) simt::fail("cp.async from an address that may not be read");
  if ((reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global)) % 16)
    simt::fail("cp.async of 16 bytes at an odd address");
  // until it arrives, what was there is lost
  std::memset(shared, 0xff, 16);
  copies_under_way[threadIdx.x].push_back({shared, global});
}

inline void wait_for_copies() {
  for (const Copy& copy : copies_under_way[threadIdx.x]) {
    if (copy.global == nullptr) {
      std::memset(copy.shared, 0, 16);
    } else {
      simt::counters.loaded += 16;
      std::memcpy(copy.shared, copy.global, 16);
    }
  }
  copies_under_way[threadIdx.x].clear();
}

inline void count_bank_conflicts(const void* const (&rows)[8]) {
  // each row takes four of the 32 banks
  int in_bank[8] = {}, worst = 0;
  for (const void* row : rows) {
    const int count = ++in_bank[reinterpret_cast<std::uintptr_t>(row) / 16 % 8];
    worst = count > worst ? count : worst;
  }
  simt::counters.matrices_loaded += 1;
  simt::counters.bank_conflicts += worst - 1;
}

template <bool kTransposed>
void load_four_matrices(std::uint32_t (&x)[4], const void* row) {
  struct Operands {
    const void* row;
    std::uint16_t out[4][2];
  } mine{row, {}};
  simt::in_lockstep(mine, [](simt::Lanes<Operands> lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::uint16_t values[8][8];
      const void* rows[8];
      for (int i = 0; i < 8; ++i) {
        rows[i] = lanes[8 * matrix + i]->row;
        if (reinterpret_cast<std::uintptr_t>(rows[i]) % 16) simt::fail("ldmatrix at odd address");
        std::memcpy(values[i], rows[i], 16);
      }
      count_bank_conflicts(rows);
      for (int lane = 0; lane < simt::kLanes; ++lane)
        for (int i = 0; i < 2; ++i) {
          const int row = lane / 4, column = 2 * (lane % 4) + i;
          lanes[lane]->out[matrix][i] = kTransposed ? values[column][row] : values[row][column];
        }
    }
  });
  std::memcpy(x, mine.out, sizeof(x));
}

inline void load_matrices(std::uint32_t (&x)[4], const void* row) {
  load_four_matrices<false>(x, row);
}

inline void load_matrices_transposed(std::uint32_t (&x)[4], const void* row) {
  load_four_matrices<true>(x, row);
}

inline float half_bits_to_float(std::uint16_t bits) {
  half value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float bf16_bits_to_float(std::uint16_t bits) {
  return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
}

// mma.m16n8kK for K = 8 and 16.
template <int kDepth, float (*kToFloat)(std::uint16_t)>
void mma(float (&c)[4], const std::uint32_t* a, const std::uint32_t* b) {
  constexpr int kA = kDepth / 2, kB = kDepth / 4;  // values in a lane
  struct Operands {
    std::uint16_t a[kA], b[kB];
    float* c;
  } mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  mine.c = c;
  simt::in_lockstep(mine, [](simt::Lanes<Operands> lanes) {
    float a[16][kDepth], b[kDepth][8];
    for (int lane = 0; lane < simt::kLanes; ++lane) {
      const int group = lane >> 2, in_group = lane % 4;
      for (int i = 0; i < kA; ++i) {
        // m16n8k8: group for a0 and a1; m16n8k16: group for 0 <= i < 2 or 4 <= i < 6
        const int row = i % 4 < 2 ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        a[row][column] = kToFloat(lanes[lane]->a[i]);
      }
      for (int i = 0; i < kB; ++i) {
        const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
        b[row][group] = kToFloat(lanes[lane]->b[i]);
      }
    }
    for (int lane = 0; lane < simt::kLanes; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8;
        const int column = (lane % 4) * 2 + (i & 1);
        float sum = lanes[lane]->c[i];
        for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
        lanes[lane]->c[i] = sum;
      }
  });
}

inline void mma_m16n8k8(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t b) {
  const std::uint32_t a[2] = {a0, a1};
  mma<8, half_bits_to_float>(c, a, &b);
}

inline void mma_m16n8k16_f16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1) {
  const std::uint32_t b[2] = {b0, b1};
  mma<16, half_bits_to_float>(c, a, b);
}

inline void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                              std::uint32_t b1) {
  const std::uint32_t b[2] = {b0, b1};
  mma<16, bf16_bits_to_float>(c, a, b);
}

inline std::uint32_t round_to_bf16x2(float low, float high) {
  const auto round = [](float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    if (x != x) return std::uint32_t{0x7fff};
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}

}  // namespace pvt_kernels::cuda::ptx
