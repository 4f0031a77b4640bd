// What products multiply and add in: units of 32 bits, which are one float or two bf16.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/vec.h"

namespace pvt_kernels::cpu {
namespace {

// A product counts what it sums over, its depth, in units of 32 bits: one float, or two bf16 that
// one instruction multiplies and adds in fp32.
struct Floats {
  using Unit = float;
  static constexpr int kValues = 1;
  static Vec multiply_add(Vec sum, Unit weight, Vec values) { return sum + weight * values; }
  static Vec multiply_add(Vec sum, Vec weights, Vec values) { return sum + weights * values; }
  static Vec exp2(Vec x) { return cpu::exp2(x); }
  // units of a value from each of two vectors, of which units of one value need no second
  static Vec units(Vec first, Vec) { return first; }
  static Vec neighbours(Vec first, Vec) { return first; }
};

// Two bf16 a unit, from vectors of floats.
struct Bf16Units {
  struct Unit {
    std::uint16_t first, second;
  };
  static constexpr int kValues = 2;

  static Vec exp2(Vec x) { return exp2_for_bf16(x); }
  static Vec units(Vec first, Vec second) { return interleave_bf16(first, second); }
  // units of neighbouring values of 2 * kLanes values in a row
  static Vec neighbours(Vec first, Vec second) { return concatenate_bf16(first, second); }
};

#if defined(__AVX512BF16__)
struct Bf16Pairs : Bf16Units {
  static Vec multiply_add(Vec sum, Unit weight, Vec values) {
    std::int32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(bits), (__m512bh)values);
  }

  static Vec multiply_add(Vec sum, Vec weights, Vec values) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)values);
  }
};
#endif

// In the tiles of AMX, 16 x 16 units at a time: by tile_product.h alone.
struct Bf16Tiles : Bf16Units {};

template <class A>
constexpr bool kInTiles = std::is_same_v<A, Bf16Tiles>;

// What tensors stored as T are multiplied in: fp32, if not in pairs of bf16.
template <class T>
struct ArithmeticFor {
  using type = Floats;
};

#if defined(PVT_KERNELS_AMX)
template <>
struct ArithmeticFor<BF16> {
  using type = Bf16Tiles;
};
#elif defined(__AVX512BF16__)
template <>
struct ArithmeticFor<BF16> {
  using type = Bf16Pairs;
};
#endif

// Whether rows of tensors stored as T are rows of units as they stand.
template <class A, class T>
constexpr bool kStoredAsUnits = A::kValues == 2 || std::is_same_v<T, F32>;

inline std::int64_t round_up(std::int64_t x, std::int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

template <class A>
std::int64_t units_of(std::int64_t values) {
  return (values + A::kValues - 1) / A::kValues;
}

}  // namespace
}  // namespace pvt_kernels::cpu
