// Slabs of a map of tokens, each of which goes through all steps of a feed-forward network in
// cache.
//
// A slab's tokens and the halo around them lie row after row in one line of positions, so that a
// convolution's neighbours are at fixed distances, and products don't mind where rows end.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/feed_forward.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

// A range of positions in tiles of columns.
struct Positions {
  std::int64_t begin, end;

  std::int64_t tiles() const { return (end - begin + kColumns - 1) / kColumns; }
  std::int64_t first(std::int64_t tile) const { return begin + tile * kColumns; }
  std::int64_t count(std::int64_t tile) const { return std::min(kColumns, end - first(tile)); }
};

struct Slab {
  // of the map, and of the slab's own tokens in it
  std::int64_t height, width, batch, row, column, rows, columns;
  // rows and columns around them, and the distance of rows
  std::int64_t halo, side, stride;

  // Own tokens and up to `margin` rows and columns around them, as far as the map has these rows.
  Positions around(std::int64_t margin) const {
    const std::int64_t above = std::min(margin, row), below = std::min(margin, height - row - rows),
                       beside = std::min(margin, side);
    return {(halo - above) * stride + side - beside,
            (halo + rows - 1 + below) * stride + side + columns + beside};
  }

  std::int64_t row_of(std::int64_t position) const { return position / stride - halo + row; }
  std::int64_t column_of(std::int64_t position) const { return position % stride - side + column; }

  bool owns(std::int64_t position) const {
    const std::int64_t r = row_of(position) - row, c = column_of(position) - column;
    return 0 <= r && r < rows && 0 <= c && c < columns;
  }
  std::int64_t token(std::int64_t position) const {
    return row_of(position) * width + column_of(position);
  }
};

// How a call's tokens are cut into slabs, and the hidden channels of a slab into parts where there
// are fewer slabs than threads.
struct Slabs {
  const FeedForwardSizes& sizes;
  std::int64_t halo, rows = 1, columns = 1, down = 1, across = 1, total = 0, parts = 1;

  // `halo` rows and columns of neighbours for each convolution; slabs of up to `largest` positions,
  // the halo included, but of at least a row.
  Slabs(const FeedForwardSizes& s, std::int64_t halo, std::int64_t largest)
      : sizes(s), halo(s.convolved ? halo : 0) {
    double least = std::numeric_limits<double>::max();
    for (std::int64_t across = 1; across <= (s.width + kLanes - 1) / kLanes; ++across) {
      const std::int64_t columns = (s.width + across - 1) / across, stride = stride_of(columns);
      const std::int64_t deepest = std::max<std::int64_t>(largest / stride - 2 * this->halo, 1);
      const std::int64_t fewest = (s.height + deepest - 1) / deepest;
      for (std::int64_t down = fewest; down <= std::min(s.height, fewest + s.threads); ++down) {
        std::int64_t rows = (s.height + down - 1) / down;
        // without a map to respect, whole vectors of tokens
        if (!s.convolved) rows = round_up(rows, kLanes);
        consider(rows, columns, stride, least);
      }
    }
    total = s.batch * down * across;
  }

  // Of a slab with all of its halo, and what vectors read beyond it.
  std::int64_t positions() const { return (rows + 2 * halo) * stride_of(columns) + kColumns; }

  Slab operator[](std::int64_t i) const {
    const std::int64_t row = i / across % down * rows, column = i % across * columns;
    return {sizes.height,
            sizes.width,
            i / across / down,
            row,
            column,
            std::min(rows, sizes.height - row),
            std::min(columns, sizes.width - column),
            halo,
            columns == sizes.width ? std::min<std::int64_t>(halo, 1) : halo,
            stride_of(columns)};
  }

 private:
  // Where rows are whole, one column of zeros is both a row's right neighbour and the next row's
  // left one.
  std::int64_t stride_of(std::int64_t columns) const {
    return columns == sizes.width ? columns + std::min<std::int64_t>(halo, 1) : columns + 2 * halo;
  }

  // Keeps what lets the thread with the most work be done first.
  void consider(std::int64_t rows, std::int64_t columns, std::int64_t stride, double& least) {
    // what a slab costs however small it is, in positions
    constexpr std::int64_t kOverhead = 32;
    const std::int64_t down = (sizes.height + rows - 1) / rows,
                       across = (sizes.width + columns - 1) / columns;
    const std::int64_t slabs = std::max<std::int64_t>(sizes.batch * down * across, 1);
    const std::int64_t parts = std::clamp<std::int64_t>(sizes.threads / slabs, 1,
                                                        (sizes.hidden + kColumns - 1) / kColumns);
    const std::int64_t rounds = (slabs * parts + sizes.threads - 1) / sizes.threads;
    const std::int64_t with_halo = std::min(rows + 2 * halo, sizes.height) * stride;
    const double cost = rounds * static_cast<double>(with_halo + rows * stride + kOverhead) / parts;
    if (cost >= least) return;
    least = cost;
    this->rows = rows;
    this->columns = columns;
    this->down = down;
    this->across = across;
    this->parts = parts;
  }
};

// Hidden channels that are computed at a time, and their index-th part of `parts`.
constexpr std::int64_t kHidden = kColumns;

inline Part hidden_part(const FeedForwardSizes& s, std::int64_t index, std::int64_t parts) {
  const std::int64_t chunks = (s.hidden + kHidden - 1) / kHidden;
  const std::int64_t first = chunks * index / parts * kHidden;
  return {first, std::min(chunks * (index + 1) / parts * kHidden, s.hidden) - first};
}

// The rows of tokens at positions [first, first + count), side by side; 0 where there is none.
template <class T>
void gather_tokens(const Slab& slab, const Tokens& t, std::int64_t channels, std::int64_t first,
                   std::int64_t count, typename T::Storage* to) {
  using Storage = typename T::Storage;
  const auto* image = static_cast<const Storage*>(t.data) + slab.batch * t.batch_stride;
  std::int64_t row = slab.row_of(first), column = slab.column_of(first);
  for (std::int64_t i = 0; i < count; ++i, to += channels) {
    if (0 <= row && row < slab.height && 0 <= column && column < slab.width)
      std::memcpy(to, image + (row * slab.width + column) * t.token_stride,
                  channels * sizeof(Storage));
    else
      std::fill(to, to + channels, Storage{});
    if (++column < slab.column - slab.side + slab.stride) continue;
    column = slab.column - slab.side;
    ++row;
  }
}

// All bits at the positions of own tokens and of those up to `margin` rows and columns around them
// that are in the map, none elsewhere.
inline void fill_mask(const Slab& slab, std::int64_t margin, std::int64_t positions,
                      std::int32_t* mask) {
  const std::int64_t beside = std::min(margin, slab.side);
  const std::int64_t left = std::max<std::int64_t>(slab.column - beside, 0),
                     right = std::min(slab.column + slab.columns + beside, slab.width);
  std::fill(mask, mask + positions, 0);
  for (std::int64_t row = std::max<std::int64_t>(slab.row - margin, 0);
       row < std::min(slab.row + slab.rows + margin, slab.height); ++row) {
    std::int32_t* begin =
        mask + (row - slab.row + slab.halo) * slab.stride + slab.side - slab.column;
    std::fill(begin + left, begin + right, -1);
  }
}

// The fp32 tiles [tiles][channels][kColumns] of a slab's own tokens to rows of a contiguous
// (B, N, C); `unused` is a row for what lies between them.
template <class T>
void store_tokens(const Slab& slab, const float* tile, std::int64_t channels,
                  typename T::Storage* to, typename T::Storage* unused) {
  const Positions own = slab.around(0);
  auto* image = to + slab.batch * slab.height * slab.width * channels;
  for (std::int64_t i = 0; i < own.tiles(); ++i, tile += channels * kColumns) {
    store_columns<T>(tile, own.count(i), channels, 1.0f, [&](auto column) {
      const std::int64_t position = own.first(i) + column;
      return slab.owns(position) ? image + slab.token(position) * channels : unused;
    });
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
