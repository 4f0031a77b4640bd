// Tiles of tokens, how they come out of tensors and go back, and scratch memory.
//
// A tile holds up to kColumns tokens as columns, a vector of neighbours at a time, and one channel
// or key a row. A product's left factor is then what all tokens share (a weight, the keys, the
// values), read in the order in which it is stored, and nothing but the tokens is ever transposed.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/chains.h"
#include "cpu/vec.h"

namespace pvt_kernels::cpu {
namespace {

constexpr std::int64_t kColumns = 64;
static_assert(kColumns % kTile == 0);

// `values` values of a row as units; what is beyond them in the last unit is 0.
template <class A, class T>
void copy_as_units(const typename T::Storage* row, std::int64_t values, typename A::Unit* to) {
  if constexpr (kStoredAsUnits<A, T>) {
    if (values == kLanes * A::kValues) {
      // by far the most frequent, and one move
      std::memcpy(static_cast<void*>(to), row, kLanes * 4);
      return;
    }
    if (values % A::kValues != 0) to[values / A::kValues] = {};
    std::memcpy(static_cast<void*>(to), row, values * sizeof *row);
  } else {
    for (std::int64_t i = 0; i < values; ++i) to[i] = T::to_float(row[i]);
  }
}

// rows[count][values], `stride` apart, to tile[units][kColumns]; columns beyond `count` up to a
// whole vector become 0.
template <class A, class T>
void load_columns(const typename T::Storage* rows, std::int64_t stride, std::int64_t count,
                  std::int64_t values, typename A::Unit* tile) {
  using Unit = typename A::Unit;
  const std::int64_t units = units_of<A>(values);
  for (std::int64_t column = 0; column < count; column += kLanes) {
    const std::int64_t columns = std::min<std::int64_t>(kLanes, count - column);
    for (std::int64_t row = 0; row < units; row += kLanes) {
      const std::int64_t first = row * A::kValues;
      const std::int64_t length = std::min<std::int64_t>(kLanes * A::kValues, values - first);
      if constexpr (std::is_same_v<T, F32>) {
        if (columns == kLanes && length == kLanes) {
          transpose(rows + column * stride + first, stride, tile + row * kColumns + column,
                    kColumns);
          continue;
        }
      }
      Unit block[kLanes * kLanes], turned[kLanes * kLanes];
      if (columns < kLanes) std::fill(block, block + kLanes * kLanes, Unit{});
      for (std::int64_t i = 0; i < columns; ++i)
        copy_as_units<A, T>(rows + (column + i) * stride + first, length, block + i * kLanes);
      if (row + kLanes <= units) {
        transpose(block, kLanes, tile + row * kColumns + column, kColumns);
      } else {
        for (std::int64_t i = 0; i < columns; ++i)
          std::fill(block + i * kLanes + units - row, block + (i + 1) * kLanes, Unit{});
        transpose(block, kLanes, turned, kLanes);
        for (std::int64_t i = 0; i < units - row; ++i)
          store(tile + (row + i) * kColumns + column, load(turned + i * kLanes));
      }
    }
  }
}

// Up to a vector of values.
template <class T>
void copy_from_floats(const float* values, std::int64_t count, typename T::Storage* to) {
  if (count == kLanes) {
    T::from_floats(load(values), to);
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = T::from_float(values[i]);
  }
}

// The fp32 tile[values][kColumns], times `factor`, to `count` rows of values; row i begins at
// row(i).
template <class T, class Row>
void store_columns(const float* tile, std::int64_t count, std::int64_t values, float factor,
                   Row row) {
  for (std::int64_t column = 0; column < count; column += kLanes) {
    const std::int64_t columns = std::min<std::int64_t>(kLanes, count - column);
    for (std::int64_t first = 0; first < values; first += kLanes) {
      const std::int64_t length = std::min<std::int64_t>(kLanes, values - first);
      float block[kLanes * kLanes], turned[kLanes * kLanes];
      for (std::int64_t i = 0; i < length; ++i)
        store(block + i * kLanes, load(tile + (first + i) * kColumns + column) * factor);
      for (std::int64_t i = length; i < kLanes; ++i) store(block + i * kLanes, Vec{});
      transpose(block, kLanes, turned, kLanes);
      for (std::int64_t i = 0; i < columns; ++i) {
        copy_from_floats<T>(turned + i * kLanes, length, row(column + i) + first);
      }
    }
  }
}

// The fp32 tile[rows][kColumns] as units of neighbouring rows, to[units][kColumns]; `to` may be the
// tile itself. Of an odd last row the partner is 0.
template <class A>
void copy_units(const float* tile, std::int64_t rows, std::int64_t columns, typename A::Unit* to) {
  for (std::int64_t row = 0; row < rows; row += A::kValues, to += kColumns) {
    for (std::int64_t c = 0; c < columns; c += kLanes) {
      const float* from = tile + row * kColumns + c;
      Vec second = {};
      if (A::kValues == 2 && row + 1 < rows) second = load(from + kColumns);
      store(to + c, A::units(load(from), second));
    }
  }
}

// The same in the tile's own memory.
template <class A>
const typename A::Unit* as_units(float* tile, std::int64_t rows, std::int64_t columns) {
  auto* units = reinterpret_cast<typename A::Unit*>(tile);
  if constexpr (A::kValues > 1) copy_units<A>(tile, rows, columns, units);
  return units;
}

// The same with units of neighbouring columns, [rows][kColumns / kValues]: the tile as a left
// factor whose depth the columns are. What is beyond the columns is not read.
template <class A>
ByRows<A> by_rows(float* tile, std::int64_t rows, std::int64_t columns) {
  auto* units = reinterpret_cast<typename A::Unit*>(tile);
  if constexpr (A::kValues == 2) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t c = 0; c < columns; c += 2 * kLanes) {
        const float* from = tile + row * kColumns + c;
        const Vec second = c + kLanes < columns ? load(from + kLanes) : Vec{};
        store(units + row * (kColumns / 2) + c / 2, A::neighbours(load(from), second));
      }
    }
  }
  return {units, kColumns / A::kValues, units_of<A>(columns)};
}

// rows[count][values], `stride` apart, to units of neighbouring rows, [units][to_stride]; what is
// beyond `values` up to a whole vector becomes 0.
template <class A, class T>
void copy_row_units(const typename T::Storage* rows, std::int64_t stride, std::int64_t count,
                    std::int64_t values, typename A::Unit* to, std::int64_t to_stride) {
  for (std::int64_t row = 0; row < count; row += A::kValues, to += to_stride) {
    const typename T::Storage* first = rows + row * stride;
    if constexpr (A::kValues == 1) {
      for (std::int64_t c = 0; c < values; ++c) to[c] = T::to_float(first[c]);
    } else if (row + 1 < count) {
      for (std::int64_t c = 0; c < values; ++c) to[c] = {first[c], first[c + stride]};
    } else {
      for (std::int64_t c = 0; c < values; ++c) to[c] = {first[c], 0};
    }
    std::fill(to + values, to + round_up(values, kLanes), typename A::Unit{});
  }
}

// The fp32 tile[values][kColumns] to units of neighbouring columns, [units][stride]: the right
// factor of a product whose depth the tokens are. Rows of the tile beyond `values` up to a whole
// vector are read.
template <class A>
void columns_to_row_units(const float* tile, std::int64_t values, std::int64_t columns,
                          typename A::Unit* to, std::int64_t stride) {
  for (std::int64_t column = 0; column < columns; column += kLanes) {
    for (std::int64_t c = 0; c < values; c += kLanes) {
      float turned[kLanes * kLanes];
      transpose(tile + c * kColumns + column, kColumns, turned, kLanes);
      for (int i = 0; i < kLanes; i += A::kValues) {
        const float* row = turned + i * kLanes;
        store(to + (column + i) / A::kValues * stride + c,
              A::units(load(row), load(row + (A::kValues - 1) * kLanes)));
      }
    }
  }
}

// Of a tile's row, to a whole vector of columns.
inline float row_sum(const float* row, std::int64_t columns) {
  Vec total = {};
  for (std::int64_t c = 0; c < columns; c += kLanes) total += load(row + c);
  return sum(total);
}

inline void fill_rows(float* tile, std::int64_t rows, const float* values) {
  for (std::int64_t row = 0; row < rows; ++row)
    std::fill_n(tile + row * kColumns, kColumns, values == nullptr ? 0.0f : values[row]);
}

inline void add_to_rows(float* tile, std::int64_t rows, const float* values) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t c = 0; c < kColumns; c += kLanes) {
      float* at = tile + row * kColumns + c;
      store(at, load(at) + values[row]);
    }
  }
}

// Hands out pieces of one thread's share of the workspace; from a base of nullptr, only counts.
class Scratch {
 public:
  explicit Scratch(const void* base, std::size_t offset = 0)
      : base_(reinterpret_cast<std::uintptr_t>(base) + offset) {}

  // Whole cache lines, so that threads share none.
  template <class Unit = float>
  Unit* take(std::int64_t count) {
    auto* piece = reinterpret_cast<Unit*>(base_ + bytes_);
    bytes_ += static_cast<std::size_t>(round_up(count * sizeof(Unit), 64));
    return piece;
  }

  std::size_t bytes() const { return bytes_; }

 private:
  std::uintptr_t base_;
  std::size_t bytes_ = 0;
};

// Tiles of `groups` runs of tokens in a row, of which each thread takes an equal, consecutive part.
// The tiles of a run have as equal numbers of whole vectors as there can be.
struct Tiles {
  std::int64_t tokens, vectors, per_group, total;

  Tiles(std::int64_t groups, std::int64_t tokens, int threads)
      : tokens(tokens),
        vectors((tokens + kLanes - 1) / kLanes),
        per_group(cheapest_per_group(groups, vectors, threads)),
        total(groups * per_group) {}

  std::int64_t begin(int thread, int threads) const { return total * thread / threads; }
  std::int64_t group(std::int64_t tile) const { return tile / per_group; }
  // the tile's first token within its group, and how many it has
  std::int64_t first(std::int64_t tile) const { return border(tile % per_group); }
  std::int64_t count(std::int64_t tile) const {
    return std::min(border(tile % per_group + 1), tokens) - first(tile);
  }

 private:
  // How many tiles of each group let the thread with the most of them be done first: a wide tile
  // does the most for what it reads, narrow ones leave no thread idle.
  static std::int64_t cheapest_per_group(std::int64_t groups, std::int64_t vectors, int threads) {
    // what a tile costs however narrow it is, in columns
    constexpr std::int64_t kOverhead = 8;
    constexpr std::int64_t kWidest = kColumns / kLanes;
    const std::int64_t fewest = (vectors + kWidest - 1) / kWidest;
    std::int64_t cheapest = 0;
    double least = std::numeric_limits<double>::max();
    for (std::int64_t n = fewest; n <= std::min(vectors, fewest + threads); ++n) {
      const std::int64_t of_thread = (groups * n + threads - 1) / threads;
      const double width = static_cast<double>(vectors * kLanes) / n;
      const double cost = of_thread * (width + kOverhead);
      if (cost >= least) continue;
      least = cost;
      cheapest = n;
    }
    return cheapest;
  }

  std::int64_t border(std::int64_t i) const { return vectors * i / per_group * kLanes; }
};

// The index-th of `parts` parts of `rows` rows, as equal as blocks of rows allow.
struct Part {
  std::int64_t first, count;
};

inline Part part(std::int64_t rows, std::int64_t index, std::int64_t parts) {
  const std::int64_t blocks = (rows + kRows - 1) / kRows;
  const std::int64_t first = std::min(blocks * index / parts * kRows, rows);
  return {first, std::min(blocks * (index + 1) / parts * kRows, rows) - first};
}

}  // namespace
}  // namespace pvt_kernels::cpu
