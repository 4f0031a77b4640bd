// Vectors of the instruction set that the including file is compiled for, and what is computed
// with them. Everything lives in an unnamed namespace, because the same source is compiled several
// times with different flags.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "cpu/dtype.h"

namespace pvt_kernels::cpu {
namespace {

#if defined(__AVX512F__) || defined(PVT_KERNELS_AMX)
constexpr int kVectorBytes = 64;
// rows x vectors of a register block: 24 accumulators of 32 registers
constexpr int kBlockVectors = 4;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
// 12 accumulators of 16 registers
constexpr int kBlockVectors = 2;
#else
constexpr int kVectorBytes = 16;
constexpr int kBlockVectors = 2;
#endif

typedef float Vec __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t IntVec __attribute__((vector_size(kVectorBytes)));
typedef std::int16_t ShortVec __attribute__((vector_size(kVectorBytes / 2)));

constexpr int kLanes = kVectorBytes / 4;

// Of any type of 32 bits; a vector of another type than float is only moved and shuffled.
template <class Unit>
Vec load(const Unit* p) {
  static_assert(sizeof(Unit) == 4);
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class Unit>
void store(Unit* p, Vec v) {
  static_assert(sizeof(Unit) == 4);
  std::memcpy(p, &v, sizeof v);
}

inline Vec broadcast(float x) { return x - Vec{}; }

inline IntVec lane_indices() {
  IntVec v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Of the two, b where one is NaN.
inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  // GCC 12 warns of the unmasked one's own header
  return _mm512_maskz_max_ps(0xffff, a, b);
#elif defined(__AVX__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

inline Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(0xffff, a, b);
#elif defined(__AVX__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

inline float sum(Vec v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}

// a0 b0 a1 b1 ... from the first halves of a and b, and from the second halves.
struct Interleaved {
  Vec low, high;
};

#if defined(__clang__)
template <int... I>
inline Interleaved interleave(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return {__builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...),
          __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + I % 2 * kLanes)...)};
}

inline Interleaved interleave(Vec a, Vec b) {
  return interleave(a, b, std::make_integer_sequence<int, kLanes>());
}
#else
inline Interleaved interleave(Vec a, Vec b) {
  const IntVec i = lane_indices(), low = i / 2 + i % 2 * kLanes;
  return {__builtin_shuffle(a, b, low), __builtin_shuffle(a, b, low + kLanes / 2)};
}
#endif

// to[c * to_stride + i] = from[i * from_stride + c] for kLanes rows and channels.
#if defined(__AVX__) && !defined(__AVX512F__)
// Halves of four channels, row i beside row i + 4 as they are loaded: no shuffle has to cross the
// halves of a register.
template <class Unit>
void transpose(const Unit* from, std::int64_t from_stride, Unit* to, std::int64_t to_stride) {
  for (int c = 0; c < kLanes; c += 4) {
    Vec rows[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto* row = reinterpret_cast<const float*>(from + i * from_stride + c);
      rows[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)),
                                     _mm_loadu_ps(row + 4 * from_stride), 1);
    }
    const Vec low[2] = {_mm256_unpacklo_ps(rows[0], rows[2]), _mm256_unpacklo_ps(rows[1], rows[3])};
    const Vec high[2] = {_mm256_unpackhi_ps(rows[0], rows[2]),
                         _mm256_unpackhi_ps(rows[1], rows[3])};
    store(to + c * to_stride, _mm256_unpacklo_ps(low[0], low[1]));
    store(to + (c + 1) * to_stride, _mm256_unpackhi_ps(low[0], low[1]));
    store(to + (c + 2) * to_stride, _mm256_unpacklo_ps(high[0], high[1]));
    store(to + (c + 3) * to_stride, _mm256_unpackhi_ps(high[0], high[1]));
  }
}
#else
// log2(kLanes) rounds of interleaving row i with row i + kLanes / 2.
template <class Unit>
void transpose(const Unit* from, std::int64_t from_stride, Unit* to, std::int64_t to_stride) {
  Vec rows[kLanes], next[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      const Interleaved pair = interleave(rows[i], rows[i + kLanes / 2]);
      next[2 * i] = pair.low;
      next[2 * i + 1] = pair.high;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < kLanes; ++i) store(to + i * to_stride, rows[i]);
}
#endif

// What a polynomial of 2^f for f in [-1/2, 1/2] has to be raised to 2^x with: x rounded to an
// integer, and f the rest.
#if defined(__AVX512F__)
struct Exponent {
  Vec rounded, f;

  // masked, as max() is
  explicit Exponent(Vec x)
      : rounded(_mm512_maskz_roundscale_ps(0xffff, x, _MM_FROUND_TO_NEAREST_INT)), f(x - rounded) {}

  // of x = -infinity f and p are NaN, and the instruction returns 0
  Vec raise(Vec p) const { return _mm512_maskz_scalef_ps(0xffff, p, rounded); }
};
#else
struct Exponent {
  Vec shifted, f;

  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; with the exponent's bias
  // on top they are the exponent.
  explicit Exponent(Vec x) {
    constexpr float kShift = 12582912.0f + 127.0f;
    x = max(broadcast(-127.0f), x);
    shifted = x + kShift;
    f = x - (shifted - kShift);
  }

  Vec raise(Vec p) const {
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
  }
};
#endif

// 2^x for x <= 127; NaN for NaN. The polynomial is the minimax fit of 2^f on [-1/2, 1/2] with
// p(0) = 1.
template <int N>
Vec exp2(Vec x, const float (&coefficients)[N]) {
  const Exponent exponent(x);
  Vec p = exponent.f * coefficients[0] + coefficients[1];
#pragma GCC unroll 8
  for (int i = 2; i < N; ++i) p = p * exponent.f + coefficients[i];
  return exponent.raise(p * exponent.f + 1.0f);
}

// With a relative error below 1e-7, of which 2e-9 is the polynomial's.
inline Vec exp2(Vec x) {
  return exp2(x, {1.5353360612e-04f, 1.3398874867e-03f, 9.6184373665e-03f, 5.5503324697e-02f,
                  2.4022647913e-01f, 6.9314720286e-01f});
}

// With a relative error of 3e-6: a thousandth of bf16's rounding.
inline Vec exp2_for_bf16(Vec x) {
  return exp2(x, {9.5853237223e-03f, 5.5906626794e-02f, 2.4024039574e-01f, 6.9312418381e-01f});
}

inline float bits_to_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline std::uint32_t float_to_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

struct F32 {
  using Storage = float;
  static float to_float(float x) { return x; }
  static float from_float(float x) { return x; }
  static void from_floats(Vec x, float* to) { store(to, x); }
};

struct BF16 {
  using Storage = std::uint16_t;
  static float to_float(std::uint16_t x) {
    return bits_to_float(static_cast<std::uint32_t>(x) << 16);
  }
  static std::uint16_t from_float(float x) {
    const std::uint32_t bits = float_to_bits(x);
    if (x != x) return 0x7fc0;
    // to nearest, ties to even
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  static void from_floats(Vec x, std::uint16_t* to) {
    IntVec bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const auto narrow = __builtin_convertvector(x == x ? bits : IntVec{} + 0x7fc0, ShortVec);
    std::memcpy(to, &narrow, sizeof narrow);
  }
};

struct F16 {
  using Storage = std::uint16_t;
  static float to_float(std::uint16_t x) {
    // the exponent's bias goes from 15 to 127 by a multiplication, which is right for subnormal
    // numbers too; infinity and NaN get the largest exponent
    const std::uint32_t magnitude = static_cast<std::uint32_t>(x & 0x7fff) << 13;
    const std::uint32_t scaled = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
    const std::uint32_t special = magnitude | 0x7f800000;
    const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000) << 16;
    return bits_to_float((magnitude >= 0x0f800000 ? special : scaled) | sign);
  }
  static std::uint16_t from_float(float x) {
    const std::uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffff;
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    // 65520 and above round to infinity
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) {
      // subnormal: the addition aligns the last bit kept with that of 0.5, and rounds
      const std::uint32_t aligned = float_to_bits(bits_to_float(magnitude) + 0.5f);
      return static_cast<std::uint16_t>(sign | (aligned - 0x3f000000));
    }
    const std::uint32_t rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1);
    return static_cast<std::uint16_t>(sign | (rounded >> 13));
  }
  static void from_floats(Vec x, std::uint16_t* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = from_float(x[i]);
  }
};

#if defined(__AVX512BF16__)
// The bf16 of `first`, then those of `second`.
inline Vec concatenate_bf16(Vec first, Vec second) {
  return (Vec)_mm512_cvtne2ps_pbh(second, first);
}

// A bf16 of `first` beside one of `second`.
inline Vec interleave_bf16(Vec first, Vec second) {
  const auto halves = (__m512i)concatenate_bf16(first, second);
  std::uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * 16);
  return (Vec)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), halves);
}
#else
inline Vec concatenate_bf16(Vec first, Vec second) {
  std::uint16_t values[2 * kLanes];
  BF16::from_floats(first, values);
  BF16::from_floats(second, values + kLanes);
  Vec both;
  std::memcpy(&both, values, sizeof both);
  return both;
}

inline Vec interleave_bf16(Vec first, Vec second) {
  std::uint16_t values[2 * kLanes], pairs[2 * kLanes];
  BF16::from_floats(first, values);
  BF16::from_floats(second, values + kLanes);
  for (int i = 0; i < kLanes; ++i) {
    pairs[2 * i] = values[i];
    pairs[2 * i + 1] = values[i + kLanes];
  }
  Vec both;
  std::memcpy(&both, pairs, sizeof both);
  return both;
}
#endif

#if defined(PVT_KERNELS_BF16_ALONE)
// As below, on a code path that is for bf16 alone.
template <class F>
void with_dtype(DType, F f) {
  f(BF16());
}
#else
// Calls f with the type above that a tensor is stored in: f(F32()), f(BF16()) or f(F16()).
template <class F>
void with_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f32:
      return f(F32());
    case DType::bf16:
      return f(BF16());
    case DType::f16:
      return f(F16());
  }
}
#endif

}  // namespace
}  // namespace pvt_kernels::cpu
