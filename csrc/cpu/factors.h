// The left factors of matrix products, and what becomes of their sums.
#pragma once

#include <cstdint>

#include "cpu/arithmetic.h"

namespace pvt_kernels::cpu {
namespace {

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
  static constexpr bool add = false;
  float* out;
  std::int64_t stride;

  void operator()(std::int64_t row, std::int64_t column, Vec sum) const {
    store(out + row * stride + column, sum);
  }
};

struct Add {
  static constexpr bool add = true;
  float* out;
  std::int64_t stride;

  void operator()(std::int64_t row, std::int64_t column, Vec sum) const {
    float* to = out + row * stride + column;
    store(to, load(to) + sum);
  }
};

struct WriteOrAdd {
  float* out;
  std::int64_t stride;
  bool add;

  void operator()(std::int64_t row, std::int64_t column, Vec sum) const {
    float* to = out + row * stride + column;
    store(to, add ? load(to) + sum : sum);
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

}  // namespace
}  // namespace pvt_kernels::cpu
