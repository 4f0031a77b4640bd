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

// Where few columns are left beyond whole vectors, a vector over the columns would be nearly empty:
// 49 tokens, or 50, are three vectors and these. Then the vectors lie over the left factor, and
// two steps of the depth are taken at a time.
constexpr int kFewColumns = 2;
constexpr std::int64_t kFewDepth = 1024;

template <class A>
bool few_columns_pay(const ByRows<A>& left, std::int64_t) {
  return left.depth % (2 * kLanes) == 0 && left.depth <= kFewDepth;
}

template <class A>
bool few_columns_pay(const ByColumns<A>& left, std::int64_t rows) {
  return rows % kLanes == 0 && left.depth % 2 == 0 && left.depth <= kFewDepth;
}

// What few columns of a product are multiplied with: the columns themselves, side by side. Beside
// the other columns every unit would be in a cache line of its own.
template <class A>
struct FewColumns {
  typename A::Unit data[kFewColumns][kFewDepth];

  void gather(const typename A::Unit* right, std::int64_t right_stride, std::int64_t depth,
              std::int64_t columns) {
    for (std::int64_t k = 0; k < depth; ++k, right += right_stride) {
      for (std::int64_t c = 0; c < columns; ++c) data[c][k] = right[c];
    }
  }
};

// The `Columns` columns of a product, of which a row's vector `to` begins with: it is written, or
// added to, as a whole.
template <int Columns>
void finish_few(const float (&sums)[Columns], float* to, bool add) {
  Vec row = {};
  for (int c = 0; c < Columns; ++c) row[c] = sums[c];
  store(to, add ? load(to) + row : row);
}

// Every sum's index is known to the compiler, or the sums would live in memory. Each is of every
// other product: two short chains, of which one fills the waits of the other.
template <int Columns, int Rows, class A>
void multiply_few_block(const ByRows<A>& left, std::int64_t row, const FewColumns<A>& right,
                        float* out, std::int64_t out_stride, bool add) {
  Vec even[Rows][Columns] = {}, odd[Rows][Columns] = {};
  const auto add_products = [&](std::int64_t k, Vec(&to)[Rows][Columns]) {
    Vec values[Columns];
#pragma GCC unroll 2
    for (int c = 0; c < Columns; ++c) values[c] = load(right.data[c] + k);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const Vec weights = load(left.at(row + i, k));
#pragma GCC unroll 2
      for (int c = 0; c < Columns; ++c) to[i][c] = A::multiply_add(to[i][c], weights, values[c]);
    }
  };
  for (std::int64_t k = 0; k < left.depth; k += 2 * kLanes) {
    add_products(k, even);
    add_products(k + kLanes, odd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
    float sums[Columns];
    for (int c = 0; c < Columns; ++c) sums[c] = sum(even[i][c] + odd[i][c]);
    finish_few(sums, out + (row + i) * out_stride, add);
  }
}

template <int Columns, class A>
void multiply_few(const ByRows<A>& left, std::int64_t rows, const FewColumns<A>& right, float* out,
                  std::int64_t out_stride, bool add) {
  constexpr int kFewRows = 4 / Columns;
  std::int64_t row = 0;
  for (; row + kFewRows <= rows; row += kFewRows)
    multiply_few_block<Columns, kFewRows>(left, row, right, out, out_stride, add);
  for (; row < rows; ++row) multiply_few_block<Columns, 1>(left, row, right, out, out_stride, add);
}

// The rows of `Vectors` vectors.
template <int Columns, int Vectors, class A>
void multiply_few_block(const ByColumns<A>& left, std::int64_t row, const FewColumns<A>& right,
                        float* out, std::int64_t out_stride, bool add) {
  Vec totals[Vectors][Columns] = {};
  for (std::int64_t begin = 0; begin < left.depth; begin += kChain) {
    Vec even[Vectors][Columns] = {}, odd[Vectors][Columns] = {};
    const auto add_products = [&](std::int64_t k, Vec(&to)[Vectors][Columns]) {
#pragma GCC unroll 2
      for (int c = 0; c < Columns; ++c) {
        const auto value = right.data[c][k];
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j)
          to[j][c] = A::multiply_add(to[j][c], value, load(left.at(row + j * kLanes, k)));
      }
    };
    const std::int64_t end = std::min(begin + kChain, left.depth);
    for (std::int64_t k = begin; k < end; k += 2) {
      add_products(k, even);
      add_products(k + 1, odd);
    }
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
#pragma GCC unroll 2
      for (int c = 0; c < Columns; ++c) totals[j][c] += even[j][c] + odd[j][c];
    }
  }
  for (int i = 0; i < Vectors * kLanes; ++i) {
    float sums[Columns];
    for (int c = 0; c < Columns; ++c) sums[c] = totals[i / kLanes][c][i % kLanes];
    finish_few(sums, out + (row + i) * out_stride, add);
  }
}

template <int Columns, class A>
void multiply_few(const ByColumns<A>& left, std::int64_t rows, const FewColumns<A>& right,
                  float* out, std::int64_t out_stride, bool add) {
  constexpr int kVectors = 4 / Columns;
  std::int64_t row = 0;
  for (; row + kVectors * kLanes <= rows; row += kVectors * kLanes)
    multiply_few_block<Columns, kVectors>(left, row, right, out, out_stride, add);
  for (; row < rows; row += kLanes)
    multiply_few_block<Columns, 1>(left, row, right, out, out_stride, add);
}

// out = left times right, or out += that with `add`, in chains of kChain units. Whole vectors of
// columns are written, as by multiply().
template <class Left>
void multiply_chains(const Left& left, std::int64_t rows,
                     const typename Left::Arithmetic::Unit* right, std::int64_t right_stride,
                     std::int64_t columns, float* out, std::int64_t out_stride, bool add = false) {
  const std::int64_t rest = columns % kLanes;
  const bool few = 0 < rest && rest <= kFewColumns && few_columns_pay(left, rows);
  const std::int64_t full = few ? columns - rest : columns;
  FewColumns<typename Left::Arithmetic> few_columns;
  if (few) few_columns.gather(right + full, right_stride, left.depth, rest);
  // all chains of a block of rows, which are read once, from beginning to end
  for (std::int64_t row = 0; row < rows; row += Left::kBlock) {
    const std::int64_t count = std::min(Left::kBlock, rows - row);
    const Left block = left.from_row(row);
    float* to = out + row * out_stride;
    for (std::int64_t k = 0; k < block.depth; k += kChain) {
      const Left chain = block.part(k, std::min(kChain, block.depth - k));
      const auto* part = right + k * right_stride;
      if (k > 0 || add)
        multiply(chain, count, part, right_stride, full, Add{to, out_stride});
      else
        multiply(chain, count, part, right_stride, full, Write{to, out_stride});
    }
    if (few && rest == 1) multiply_few<1>(block, count, few_columns, to + full, out_stride, add);
    if (few && rest == 2) multiply_few<2>(block, count, few_columns, to + full, out_stride, add);
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
