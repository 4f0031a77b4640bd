// The patches that the spatial reduction's convolution reads, and the pieces in which its gradients
// are computed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/spatial_reduction.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

// Where the first token of each patch in [first, first + count) begins, counted in elements from
// the start of `t`.
inline void find_patches(const SpatialReductionSizes& s, const Tokens& t, std::int64_t first,
                         std::int64_t count, std::int64_t* offsets) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t image = (first + i) / s.patches_per_image();
    const std::int64_t patch = (first + i) % s.patches_per_image();
    const std::int64_t row = patch / s.patches_across(), column = patch % s.patches_across();
    offsets[i] = image * t.batch_stride + (row * s.width + column) * s.sr_ratio * t.token_stride;
  }
}

// Of the token at position r = row * R + column of a patch, from its first one.
inline std::int64_t offset_in_patch(const SpatialReductionSizes& s, const Tokens& t,
                                    std::int64_t r) {
  return (r / s.sr_ratio * s.width + r % s.sr_ratio) * t.token_stride;
}

// Whether the values of a patch in the weight's order, (C, R, R), are whole units: neighbours in
// it are neighbouring tokens of a row, or channels where a patch is one token.
template <class A>
bool patch_is_whole_units(const SpatialReductionSizes& s) {
  return (s.sr_ratio == 1 ? s.channels : s.sr_ratio) % A::kValues == 0;
}

// Calls f with the arithmetic and the storage type.
template <class F>
void with_types(const SpatialReductionSizes& s, F f) {
  with_dtype(s.dtype, [&](auto type) {
    using A = typename ArithmeticFor<decltype(type)>::type;
    if (patch_is_whole_units<A>(s))
      f(A(), type);
    else
      f(Floats(), type);
  });
}

// Channels that are gathered at a time.
template <class A>
std::int64_t gathered_channels(const SpatialReductionSizes& s) {
  return s.sr_ratio == 1 ? kLanes * A::kValues : kLanes;
}

// block[columns][kLanes] to `rows` rows of a tile that are `step` rows apart, a vector of columns.
template <class Unit>
void store_transposed(const Unit* block, std::int64_t rows, std::int64_t step, Unit* tile) {
  Unit turned[kLanes * kLanes];
  transpose(block, kLanes, turned, kLanes);
  for (std::int64_t i = 0; i < rows; ++i)
    store(tile + i * step * kColumns, load(turned + i * kLanes));
}

// gather_columns() where a patch is one token: units of neighbouring channels.
template <class A, class T>
void gather_tokens(const typename T::Storage* data, const std::int64_t* offsets,
                   std::int64_t patches, std::int64_t count, typename A::Unit* tile) {
  using Unit = typename A::Unit;
  const std::int64_t rows = units_of<A>(count);
  for (std::int64_t column = 0; column < patches; column += kLanes) {
    const std::int64_t columns = std::min<std::int64_t>(kLanes, patches - column);
    Unit block[kLanes * kLanes];
    if (columns < kLanes || rows < kLanes) std::fill(block, block + kLanes * kLanes, Unit{});
    for (std::int64_t i = 0; i < columns; ++i)
      copy_as_units<A, T>(data + offsets[column + i], count, block + i * kLanes);
    store_transposed(block, rows, 1, tile + column);
  }
}

// Channels [channel, channel + count) of the patches at offsets[patches] as a right factor in the
// weight's order, tile[units][kColumns]: a channel's positions, in units of neighbouring ones, then
// the next channel's.
template <class A, class T>
void gather_columns(const SpatialReductionSizes& s, const Tokens& x, const std::int64_t* offsets,
                    std::int64_t patches, std::int64_t channel, std::int64_t count,
                    typename A::Unit* tile) {
  using Unit = typename A::Unit;
  const auto* data = static_cast<const typename T::Storage*>(x.data) + channel;
  if (s.sr_ratio == 1) return gather_tokens<A, T>(data, offsets, patches, count, tile);
  const std::int64_t positions = s.sr_ratio * s.sr_ratio / A::kValues;
  for (std::int64_t column = 0; column < patches; column += kLanes) {
    const std::int64_t columns = std::min<std::int64_t>(kLanes, patches - column);
    for (std::int64_t position = 0; position < positions; ++position) {
      Unit block[kLanes * kLanes];
      if (columns < kLanes || count < kLanes) std::fill(block, block + kLanes * kLanes, Unit{});
      const auto* from = data + offset_in_patch(s, x, position * A::kValues);
      for (std::int64_t i = 0; i < columns; ++i)
        copy_row_units<A, T>(from + offsets[column + i], x.token_stride, A::kValues, count,
                             block + i * kLanes, 0);
      store_transposed(block, count, positions, tile + position * kColumns + column);
    }
  }
}

// The gradients of the patches and of the weight are computed a chunk at a time: one of the R * R
// tokens of every patch, and up to kColumns of its channels.
struct Chunk {
  std::int64_t r, channel, count;
};

inline std::int64_t chunks_per_token(const SpatialReductionSizes& s) {
  return (s.channels + kColumns - 1) / kColumns;
}

inline std::int64_t chunk_count(const SpatialReductionSizes& s) {
  return s.sr_ratio * s.sr_ratio * chunks_per_token(s);
}

inline Chunk chunk(const SpatialReductionSizes& s, std::int64_t index) {
  const std::int64_t channel = index % chunks_per_token(s) * kColumns;
  return {index / chunks_per_token(s), channel, std::min(kColumns, s.channels - channel)};
}

// A chunk of the `count` patches at `offsets` as a right factor over patches, units[kColumns];
// zeros for channels up to a whole vector.
template <class A, class T>
void gather_rows(const SpatialReductionSizes& s, const Tokens& x, const Chunk& c,
                 const std::int64_t* offsets, std::int64_t count, typename A::Unit* rows) {
  const auto* data =
      static_cast<const typename T::Storage*>(x.data) + offset_in_patch(s, x, c.r) + c.channel;
  for (std::int64_t i = 0; i < count; i += A::kValues, rows += kColumns) {
    const std::int64_t patches = std::min<std::int64_t>(A::kValues, count - i);
    copy_row_units<A, T>(data + offsets[i], offsets[i + patches - 1] - offsets[i], patches, c.count,
                         rows, kColumns);
  }
}

// Channels from `channel` and positions from `r` on of one row of the weight, (C, R, R), to
// block[positions][channels]; zeros beyond them.
template <class T>
void turn_weight_row(const SpatialReductionSizes& s, const typename T::Storage* row,
                     std::int64_t channel, std::int64_t r, float* block) {
  const std::int64_t area = s.sr_ratio * s.sr_ratio;
  const std::int64_t count = std::min<std::int64_t>(kLanes, area - r);
  const std::int64_t channels = std::min<std::int64_t>(kLanes, s.channels - channel);
  row += channel * area + r;
  if (count == kLanes && channels == kLanes) {
    float given[kLanes * kLanes];
    for (std::int64_t i = 0; i < kLanes; ++i)
      for (std::int64_t j = 0; j < kLanes; ++j)
        given[i * kLanes + j] = T::to_float(row[i * area + j]);
    transpose(given, kLanes, block, kLanes);
  } else {
    for (std::int64_t j = 0; j < count; ++j) {
      for (std::int64_t i = 0; i < kLanes; ++i)
        block[j * kLanes + i] = i < channels ? T::to_float(row[i * area + j]) : 0.0f;
    }
  }
}

// Rows [A::kValues * unit, ..) of the weight, (C_out, C, R, R), to chunks[units of C_out][kColumns]
// of units of neighbouring rows.
template <class A, class T>
void weight_to_chunks(const SpatialReductionSizes& s, const typename T::Storage* weight,
                      std::int64_t unit, typename A::Unit* chunks) {
  const std::int64_t area = s.sr_ratio * s.sr_ratio, row = unit * A::kValues;
  const std::int64_t chunk_size = padded_units<A>(units_of<A>(s.channels)) * kColumns;
  for (std::int64_t channel = 0; channel < s.channels; channel += kLanes) {
    for (std::int64_t r = 0; r < area; r += kLanes) {
      float first[kLanes * kLanes], second[kLanes * kLanes];
      turn_weight_row<T>(s, weight + row * s.depth(), channel, r, first);
      if (A::kValues == 2 && row + 1 < s.channels)
        turn_weight_row<T>(s, weight + (row + 1) * s.depth(), channel, r, second);
      else
        std::fill(second, second + kLanes * kLanes, 0.0f);
      for (std::int64_t i = 0; i < std::min<std::int64_t>(kLanes, area - r); ++i) {
        const std::int64_t index = (r + i) * chunks_per_token(s) + channel / kColumns;
        store(chunks + index * chunk_size + unit * kColumns + channel % kColumns,
              A::units(load(first + i * kLanes), load(second + i * kLanes)));
      }
    }
  }
}

// One row of the weight's gradient from chunks[C_out][kColumns] of fp32.
template <class T>
void chunks_to_weight_row(const SpatialReductionSizes& s, const float* chunks, std::int64_t row,
                          typename T::Storage* weight) {
  const std::int64_t area = s.sr_ratio * s.sr_ratio;
  for (std::int64_t channel = 0; channel < s.channels; channel += kLanes) {
    const std::int64_t count = std::min<std::int64_t>(kLanes, s.channels - channel);
    for (std::int64_t r = 0; r < area; r += kLanes) {
      const std::int64_t positions = std::min<std::int64_t>(kLanes, area - r);
      const std::int64_t index = r * chunks_per_token(s) + channel / kColumns;
      const float* from = chunks + (index * s.channels + row) * kColumns + channel % kColumns;
      const std::int64_t stride = chunks_per_token(s) * s.channels * kColumns;
      typename T::Storage* to = weight + row * s.depth() + channel * area + r;
      if (positions == kLanes && count == kLanes) {
        float turned[kLanes * kLanes];
        transpose(from, stride, turned, kLanes);
        for (std::int64_t i = 0; i < kLanes; ++i)
          T::from_floats(load(turned + i * kLanes), to + i * area);
      } else {
        for (std::int64_t j = 0; j < positions; ++j)
          for (std::int64_t i = 0; i < count; ++i)
            to[i * area + j] = T::from_float(from[j * stride + i]);
      }
    }
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
