// Stands in for csrc/cuda/arch/ptx.cuh: the instructions by the lane layouts that the PTX ISA gives
// in the sections named there, written from those formulas and not from the kernels' use of them.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace pvt_kernels::cuda::ptx {

inline void check_alignment(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes) simt::fail("an access at an odd address");
}

template <class V>
V load_global(const V* address) {
  check_alignment(address, sizeof(V));
  simt::counters.launches.back().loaded += sizeof(V);
  return *address;
}

template <class V>
V load_own(const V* address) {
  return load_global(address);
}

template <class V>
void store_global(V* address, const V& value) {
  check_alignment(address, sizeof(V));
  simt::counters.launches.back().stored += sizeof(V);
  *address = value;
}

template <class V>
V load_written(const V* address) {
  return load_global(address);
}

inline unsigned take_ticket(unsigned* next) { return (*next)++; }

inline void publish(unsigned* number, unsigned value) { store_global(number, value); }

inline void wait_for(const unsigned* number, unsigned least) {
  if (load_global(number) < least) simt::fail("waits for a block that may not have begun");
}

template <class V>
V load_shared(const V* address) {
  simt::access_shared(address, sizeof(V), simt::Access::load);
  return *address;
}

template <class V>
void store_shared(V* address, const V& value) {
  simt::access_shared(address, sizeof(V), simt::Access::store);
  *address = value;
}

inline unsigned block_index() { return blockIdx.x; }

inline float exp2(float x) {
  const float power = std::exp2(x);
  return power < std::numeric_limits<float>::min() ? 0.0f : power;
}

// Copies that a thread began and that have not arrived.
struct Copy {
  void* shared;
  const void* global;
};
inline std::vector<Copy> copies_under_way[1024];

inline void copy_async(void* shared, const void* global, const void* valid) {
  if (valid == nullptr) simt::fail("cp.async from an address that may not be read");
  check_alignment(shared, 16);
  check_alignment(global, 16);
  simt::access_shared(shared, 16, simt::Access::store);
  // until it arrives, what was there is lost
  std::memset(shared, 0xff, 16);
  copies_under_way[threadIdx.x].push_back({shared, global});
}

inline void wait_for_copies() {
  for (const Copy& copy : copies_under_way[threadIdx.x]) {
    simt::arrive_in_shared(copy.shared, 16);
    if (copy.global == nullptr) {
      std::memset(copy.shared, 0, 16);
    } else {
      simt::counters.launches.back().loaded += 16;
      std::memcpy(copy.shared, copy.global, 16);
    }
  }
  copies_under_way[threadIdx.x].clear();
}

inline void count_matrix_conflicts(const void* const (&rows)[8]) {
  // each row takes four of the 32 banks
  int in_bank[8] = {}, worst = 0;
  for (const void* row : rows) {
    const int count = ++in_bank[reinterpret_cast<std::uintptr_t>(row) / 16 % 8];
    worst = count > worst ? count : worst;
  }
  simt::counters.matrices_loaded += 1;
  simt::counters.matrix_conflicts += worst - 1;
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
        check_alignment(rows[i], 16);
        simt::access_shared_by_warp(rows[i], 16, simt::Access::load);
        std::memcpy(values[i], rows[i], 16);
      }
      count_matrix_conflicts(rows);
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

// mma.m8n8k4: four quad pairs, each of four lanes below 16 and the four that are 16 further.
template <bool kAByRow, bool kBByRow>
void mma_m8n8k4(float (&c0)[4], float (&c1)[4], const std::uint32_t (&a)[2],
                const std::uint32_t (&b)[2]) {
  struct Operands {
    std::uint16_t a[4], b[4];
    float c[8];
  } mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  std::memcpy(mine.c, c0, sizeof(c0));
  std::memcpy(mine.c + 4, c1, sizeof(c1));
  simt::in_lockstep(mine, [](simt::Lanes<Operands> lanes) {
    for (int pair = 0; pair < 4; ++pair) {
      float a[8][4], b[4][8];
      const auto lane_of = [&](int i) { return 4 * pair + (i < 4 ? i : 16 + i - 4); };
      for (int member = 0; member < 8; ++member) {
        const int lane = lane_of(member);
        for (int i = 0; i < 4; ++i) {
          const int by_lane = lane < 16 ? lane % 4 : lane % 4 + 4;
          const int by_value = lane < 16 ? i : i + 4;
          // "row": one row, the columns i; "col": one column, the rows i
          (kAByRow ? a[by_lane][i] : a[by_value][lane % 4]) = half_bits_to_float(lanes[lane]->a[i]);
          (kBByRow ? b[lane % 4][by_value] : b[i][by_lane]) = half_bits_to_float(lanes[lane]->b[i]);
        }
      }
      for (int member = 0; member < 8; ++member) {
        const int lane = lane_of(member);
        for (int i = 0; i < 8; ++i) {
          const int x = (lane & 0b1) + (i & 0b10), row = lane < 16 ? x : x + 4;
          const int column = (i & 0b100) + (lane & 0b10) + (i & 0b1);
          for (int k = 0; k < 4; ++k) lanes[lane]->c[i] += a[row][k] * b[k][column];
        }
      }
    }
  });
  std::memcpy(c0, mine.c, sizeof(c0));
  std::memcpy(c1, mine.c + 4, sizeof(c1));
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
