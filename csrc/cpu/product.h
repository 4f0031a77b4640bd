// The register-blocked matrix product that all kernels are made of.
#pragma once

#include <cstdint>

#include "cpu/factors.h"
#include "cpu/tile_product.h"

namespace pvt_kernels::cpu {
namespace {

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
  // a copy, which no store can change: else its members would be read again after each
  const Finish to = finish;
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) to(row + i, column + j * kLanes, sum[i][j]);
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
  if constexpr (kInTiles<typename Left::Arithmetic>) {
    multiply_in_tiles(left, 0, rows, right, right_stride, columns, finish);
  } else {
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
}

}  // namespace
}  // namespace pvt_kernels::cpu
