// Products of the one or two columns that whole vectors of columns leave.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/product.h"

namespace pvt_kernels::cpu {
namespace {

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

}  // namespace
}  // namespace pvt_kernels::cpu
