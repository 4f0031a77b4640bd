// The matrix product in the tiles of AMX: 16 x 16 sums in fp32 of 16 units each, in one instruction
// that runs beside whatever vectors the thread computes meanwhile. All eight tiles have their
// largest shape, since another one would cost a new configuration; what is smaller is copied and
// padded with zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/amx.h"
#include "cpu/factors.h"

namespace pvt_kernels::cpu {
namespace {

// Of a tile: rows, and units in a row.
constexpr int kTileSize = 16;
constexpr int kTileBytes = kTileSize * 4;

// While one lives, its thread can multiply in A.
template <class A>
struct Registers {
  // or it would be an unused variable
  Registers() {}
};

template <>
struct Registers<Bf16Tiles> {
  Registers() {
    TileConfiguration configuration = {};
    configuration.palette = 1;
    std::fill_n(configuration.row_bytes, 8, static_cast<std::uint16_t>(kTileBytes));
    std::fill_n(configuration.rows, 8, static_cast<std::uint8_t>(kTileSize));
    tile_configure(configuration);
  }
  // which lets the operating system save less of the thread
  ~Registers() { tile_release(); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;
};

// A left factor by columns, [units][stride], is stored with each block of 16 x 16 units transposed
// in its place: a tile's rows are then rows of the block. Its units are padded to whole blocks.
template <class A>
std::int64_t padded_units(std::int64_t units) {
  return kInTiles<A> ? round_up(units, kTileSize) : units;
}

// To that form, from units as other arithmetic takes them.
template <class A>
void turn_blocks(typename A::Unit* data, std::int64_t units, std::int64_t stride) {
  if constexpr (kInTiles<A>) {
    std::fill(data + units * stride, data + padded_units<A>(units) * stride, typename A::Unit{});
    for (std::int64_t k = 0; k < units; k += kTileSize) {
      for (std::int64_t i = 0; i < stride; i += kTileSize)
        transpose(data + k * stride + i, stride, data + k * stride + i, stride);
    }
  }
}

using TileUnit = Bf16Tiles::Unit;

struct Edge {
  alignas(64) TileUnit units[kTileSize][kTileSize];

  // `rows` rows of `units` units, and zeros.
  const TileUnit* copy(const TileUnit* from, std::int64_t stride, std::int64_t rows,
                       std::int64_t count) {
    std::memset(static_cast<void*>(units), 0, sizeof units);
    for (std::int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, count, units[i]);
    return units[0];
  }
};

// Whether rows [0, rows) of a left factor are read in place where the depth is whole tiles.
inline bool whole_rows(const ByRows<Bf16Tiles>&, std::int64_t rows) {
  return rows % kTileSize == 0;
}
inline bool whole_rows(const ByColumns<Bf16Tiles>&, std::int64_t) { return true; }

template <int Tile>
void load_left(const ByRows<Bf16Tiles>& left, std::int64_t row, std::int64_t k) {
  tile_load<Tile>(left.at(row, k), left.stride * 4);
}

template <int Tile>
void load_left(const ByColumns<Bf16Tiles>& left, std::int64_t row, std::int64_t k) {
  tile_load<Tile>(left.data + k * left.stride + row, left.stride * 4);
}

// Of at most `rows` rows and `units` units.
template <int Tile>
void load_left_edge(const ByRows<Bf16Tiles>& left, std::int64_t row, std::int64_t rows,
                    std::int64_t k, std::int64_t units) {
  Edge edge;
  tile_load<Tile>(
      edge.copy(left.at(row, k), left.stride, std::min<std::int64_t>(rows, kTileSize), units),
      kTileBytes);
}

template <int Tile>
void load_left_edge(const ByColumns<Bf16Tiles>& left, std::int64_t row, std::int64_t,
                    std::int64_t k, std::int64_t) {
  load_left<Tile>(left, row, k);
}

template <class F, int... I>
void unroll(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}

// Calls f(0), f(1), ... with constants, as numbers of tiles have to be.
template <int N, class F>
void unroll(F f) {
  unroll(f, std::make_integer_sequence<int, N>());
}

// The sums of RowTiles x ColumnTiles tiles, at most four, in the first tile registers.
template <int RowTiles, int ColumnTiles>
struct TileSums {
  static_assert(RowTiles * ColumnTiles <= 4);
  // registers of the left and of the right factor
  static constexpr int kLeft = 4, kRight = 6;
  // the first row and column, and how many rows are left from there
  std::int64_t row, rows, column;

  static constexpr int tile(int i, int j) { return i * ColumnTiles + j; }

  // The sums begin with what `finish` adds to, if it does.
  template <class Finish>
  void begin(const Finish& finish) const {
    each_tile([&](auto i, auto j) {
      if (adds_in_place(finish, i))
        tile_load<tile(i, j)>(at(finish, i, j), finish.stride * 4);
      else
        tile_zero<tile(i, j)>();
    });
  }

  // `left` by value: what is behind a reference would be read again after every tile
  template <class Left>
  void add_products(const Left left, const TileUnit* right, std::int64_t right_stride) const {
    right += column;
    std::int64_t k = 0;
    if (whole_rows(left, std::min<std::int64_t>(rows, RowTiles * kTileSize))) {
      for (; k + kTileSize <= left.depth; k += kTileSize) {
        unroll<ColumnTiles>([&](auto j) {
          tile_load<kRight + j>(right + k * right_stride + j * kTileSize, right_stride * 4);
        });
        unroll<RowTiles>([&](auto i) {
          load_left<kLeft + i % 2>(left, row + i * kTileSize, k);
          unroll<ColumnTiles>(
              [&](auto j) { tile_multiply_add<tile(i, j), kLeft + i % 2, kRight + j>(); });
        });
      }
    }
    for (; k < left.depth; k += kTileSize) {
      const std::int64_t units = std::min<std::int64_t>(kTileSize, left.depth - k);
      unroll<ColumnTiles>([&](auto j) {
        Edge edge;
        tile_load<kRight + j>(
            edge.copy(right + k * right_stride + j * kTileSize, right_stride, units, kTileSize),
            kTileBytes);
      });
      unroll<RowTiles>([&](auto i) {
        load_left_edge<kLeft + i % 2>(left, row + i * kTileSize, rows - i * kTileSize, k, units);
        unroll<ColumnTiles>(
            [&](auto j) { tile_multiply_add<tile(i, j), kLeft + i % 2, kRight + j>(); });
      });
    }
  }

  template <class Finish>
  void end(const Finish& finish) const {
    each_tile([&](auto i, auto j) {
      if constexpr (!std::is_same_v<Finish, RescaleAndAdd>) {
        if (whole(i)) return tile_store<tile(i, j)>(at(finish, i, j), finish.stride * 4);
      }
      alignas(64) float sums[kTileSize][kTileSize];
      tile_store<tile(i, j)>(sums, kTileBytes);
      const std::int64_t count = std::min<std::int64_t>(kTileSize, rows - i * kTileSize);
      for (std::int64_t r = 0; r < count; ++r)
        finish(row + i * kTileSize + r, column + j * kTileSize, load(sums[r]));
    });
  }

 private:
  template <class F>
  static void each_tile(F f) {
    unroll<RowTiles>([&](auto i) { unroll<ColumnTiles>([&](auto j) { f(i, j); }); });
  }

  bool whole(int i) const { return rows >= (i + 1) * kTileSize; }

  template <class Finish>
  bool adds_in_place(const Finish& finish, int i) const {
    if constexpr (std::is_same_v<Finish, RescaleAndAdd>)
      return false;
    else
      return finish.add && whole(i);
  }

  template <class Finish>
  float* at(const Finish& finish, int i, int j) const {
    return finish.out + (row + i * kTileSize) * finish.stride + column + j * kTileSize;
  }
};

template <int RowTiles, int ColumnTiles, class Left, class Finish>
void multiply_tiles(const TileSums<RowTiles, ColumnTiles>& sums, const Left& left,
                    const TileUnit* right, std::int64_t right_stride, const Finish& finish) {
  sums.begin(finish);
  sums.add_products(left, right, right_stride);
  sums.end(finish);
}

// multiply(), for rows from `row` on.
template <class Left, class Finish>
void multiply_in_tiles(const Left& left, std::int64_t row, std::int64_t rows, const TileUnit* right,
                       std::int64_t right_stride, std::int64_t columns, const Finish& finish) {
  static_assert(kInTiles<typename Left::Arithmetic> && kLanes == kTileSize,
                "whole vectors of columns are whole tiles");
  const auto multiply_columns = [&](auto row_tiles, std::int64_t first) {
    std::int64_t column = 0;
    for (; column + kTileSize < columns; column += 2 * kTileSize)
      multiply_tiles(TileSums<row_tiles, 2>{first, rows - first, column}, left, right, right_stride,
                     finish);
    if (column < columns)
      multiply_tiles(TileSums<row_tiles, 1>{first, rows - first, column}, left, right, right_stride,
                     finish);
  };
  for (; row + kTileSize < rows; row += 2 * kTileSize)
    multiply_columns(std::integral_constant<int, 2>(), row);
  if (row < rows) multiply_columns(std::integral_constant<int, 1>(), row);
}

// A product of which a column of tiles is begun, computed beside other work of the thread that
// needs no tiles, and then completed. Only the first four tiles of the column are.
template <class Left, class Finish>
struct ColumnProduct {
  Left left;
  std::int64_t rows;
  const TileUnit* right;
  std::int64_t right_stride;
  Finish finish;

  void begin(std::int64_t column) const {
    with_sums(column, [&](const auto& sums) {
      sums.begin(finish);
      sums.add_products(left, right, right_stride);
    });
  }

  void complete(std::int64_t column) const {
    with_sums(column, [&](const auto& sums) { sums.end(finish); });
    // ... and the rest of the rows
    for (std::int64_t row = 4 * kTileSize; row < rows; row += 4 * kTileSize) {
      with_sums(
          column,
          [&](const auto& sums) { multiply_tiles(sums, left, right, right_stride, finish); }, row);
    }
  }

 private:
  template <class F>
  void with_sums(std::int64_t column, F f, std::int64_t row = 0) const {
    const std::int64_t left_over = rows - row;
    if (left_over > 3 * kTileSize)
      f(TileSums<4, 1>{row, left_over, column});
    else if (left_over > 2 * kTileSize)
      f(TileSums<3, 1>{row, left_over, column});
    else if (left_over > kTileSize)
      f(TileSums<2, 1>{row, left_over, column});
    else if (left_over > 0)
      f(TileSums<1, 1>{row, left_over, column});
  }
};

}  // namespace
}  // namespace pvt_kernels::cpu
