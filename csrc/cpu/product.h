// The register-blocked matrix product that all kernels are made of.
#pragma once

#include <algorithm>
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
};

#if defined(__AVX512BF16__)
struct Bf16Pairs {
  struct Unit {
    std::uint16_t first, second;
  };
  static constexpr int kValues = 2;

  static Vec multiply_add(Vec sum, Unit weight, Vec values) {
    std::int32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(bits), (__m512bh)values);
  }

  static Vec multiply_add(Vec sum, Vec weights, Vec values) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)values);
  }

  static Vec exp2(Vec x) { return exp2_for_bf16(x); }

  static Vec units(Vec first, Vec second) {
    // the conversion puts `first` into the low half of the register, `second` into the high one
    const auto halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    std::uint16_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * 16);
    return (Vec)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), halves);
  }

  // units of neighbouring values of 2 * kLanes values in a row
  static Vec neighbours(Vec first, Vec second) { return (Vec)_mm512_cvtne2ps_pbh(second, first); }
};
#endif

// What tensors stored as T are multiplied in: fp32, if not in pairs of bf16.
template <class T>
struct ArithmeticFor {
  using type = Floats;
};

#if defined(__AVX512BF16__)
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

// Rows of a register block.
constexpr int kRows = 6;
// Columns of a register block.
constexpr int kTile = kBlockVectors * kLanes;
// Units in a chain of sums; rounding errors grow with it.
constexpr std::int64_t kChain = 32;

// The left factor of a product, rows x depth units: the unit of row i at depth k is
// data[offset(i, k)].
template <class A>
struct ByRows {
  using Arithmetic = A;
  const typename A::Unit* data;
  std::int64_t stride, depth;

  std::int64_t offset(std::int64_t i, std::int64_t k) const { return i * stride + k; }
  const typename A::Unit* at(std::int64_t i, std::int64_t k) const { return data + offset(i, k); }
  // What multiply_chains() does at a time: units of one float from few rows, in long runs.
  static constexpr std::int64_t kBlock = A::kValues == 1 ? 2 * kRows : 16 * kRows;
  ByRows from_row(std::int64_t row) const { return {at(row, 0), stride, depth}; }
  ByRows part(std::int64_t k, std::int64_t units) const { return {at(0, k), stride, units}; }

  // Rows from `row` on, for the block after the one at hand: a weight whose rows are far apart is
  // nothing that the hardware would fetch ahead.
  void prefetch(std::int64_t row, std::int64_t rows) const {
    constexpr std::int64_t kCacheLine = 64 / sizeof(typename A::Unit);
    for (std::int64_t i = row; i < row + rows; ++i) {
      for (std::int64_t k = 0; k < depth; k += kCacheLine) __builtin_prefetch(at(i, k));
    }
  }
};

template <class A>
struct ByColumns {
  using Arithmetic = A;
  const typename A::Unit* data;
  std::int64_t stride, depth;

  std::int64_t offset(std::int64_t i, std::int64_t k) const { return k * stride + i; }
  const typename A::Unit* at(std::int64_t i, std::int64_t k) const { return data + offset(i, k); }
  static constexpr std::int64_t kBlock = 48 * kRows;
  ByColumns from_row(std::int64_t row) const { return {at(row, 0), stride, depth}; }
  ByColumns part(std::int64_t k, std::int64_t units) const { return {at(0, k), stride, units}; }

  // One block's columns are in the cache lines of its neighbour's.
  void prefetch(std::int64_t, std::int64_t) const {}
};

// What becomes of a vector of sums at (row, column).
struct Write {
  float* out;
  std::int64_t stride;

  void operator()(std::int64_t row, std::int64_t column, Vec sum) const {
    store(out + row * stride + column, sum);
  }
};

struct Add {
  float* out;
  std::int64_t stride;

  void operator()(std::int64_t row, std::int64_t column, Vec sum) const {
    float* to = out + row * stride + column;
    store(to, load(to) + sum);
  }
};

// out * rescale + sum, with a factor for each column.
struct RescaleAndAdd {
  float* out;
  std::int64_t stride;
  const float* rescale;

  void operator()(std::int64_t row, std::int64_t column, Vec sum) const {
    float* to = out + row * stride + column;
    store(to, load(to) * load(rescale + column) + sum);
  }
};

template <int Rows, int Vectors, class Left, class Finish>
void multiply_block(const Left& left, std::int64_t row,
                    const typename Left::Arithmetic::Unit* right, std::int64_t right_stride,
                    std::int64_t column, const Finish& finish) {
  using A = typename Left::Arithmetic;
  // once for all columns
  if (column == 0) left.prefetch(row + Rows, Rows);
  Vec sum[Rows][Vectors] = {};
  for (std::int64_t k = 0; k < left.depth; ++k) {
    const auto* weights = left.at(row, k);  // of the block's first row
    // the columns' values stay, and a row's broadcast is done with before the next row's: were all
    // rows' alive at a time, sums would have to leave the 16 registers of AVX2
    Vec values[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) values[j] = load(right + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const auto weight = weights[left.offset(i, 0)];
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[i][j] = A::multiply_add(sum[i][j], weight, values[j]);
    }
    right += right_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) finish(row + i, column + j * kLanes, sum[i][j]);
  }
}

template <int Vectors, class Left, class Finish>
void multiply_panel(const Left& left, std::int64_t rows,
                    const typename Left::Arithmetic::Unit* right, std::int64_t right_stride,
                    std::int64_t column, const Finish& finish) {
  std::int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    multiply_block<kRows, Vectors>(left, row, right, right_stride, column, finish);
  switch (rows - row) {
    case 1:
      return multiply_block<1, Vectors>(left, row, right, right_stride, column, finish);
    case 2:
      return multiply_block<2, Vectors>(left, row, right, right_stride, column, finish);
    case 3:
      return multiply_block<3, Vectors>(left, row, right, right_stride, column, finish);
    case 4:
      return multiply_block<4, Vectors>(left, row, right, right_stride, column, finish);
    case 5:
      return multiply_block<5, Vectors>(left, row, right, right_stride, column, finish);
  }
}

// left (rows x depth) times right (depth x columns), of which `finish` gets whole vectors of
// columns: up to kLanes - 1 more than asked for are read and passed on.
template <class Left, class Finish>
void multiply(const Left& left, std::int64_t rows, const typename Left::Arithmetic::Unit* right,
              std::int64_t right_stride, std::int64_t columns, const Finish& finish) {
  std::int64_t column = 0;
  for (; column + kTile - kLanes < columns; column += kTile)
    multiply_panel<kBlockVectors>(left, rows, right + column, right_stride, column, finish);
  const std::int64_t vectors = (columns - column + kLanes - 1) / kLanes;
  if constexpr (kBlockVectors > 2) {
    if (vectors == 3)
      return multiply_panel<3>(left, rows, right + column, right_stride, column, finish);
    if (vectors == 2)
      return multiply_panel<2>(left, rows, right + column, right_stride, column, finish);
  }
  if (vectors == 1) multiply_panel<1>(left, rows, right + column, right_stride, column, finish);
}

}  // namespace
}  // namespace pvt_kernels::cpu
