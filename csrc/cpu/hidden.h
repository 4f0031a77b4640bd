// What forward and backward of a feed-forward network both compute of some hidden channels.
#pragma once

#include "cpu/activation.h"
#include "cpu/slabs.h"

namespace pvt_kernels::cpu {
namespace {

// Rows of a weight, `stride` apart, of which a part of `values` columns becomes rows of units.
template <class A, class T>
void copy_rows(const typename T::Storage* rows, std::int64_t stride, std::int64_t count,
               std::int64_t values, typename A::Unit* to) {
  for (std::int64_t row = 0; row < count; ++row)
    copy_as_units<A, T>(rows + row * stride, values, to + row * units_of<A>(values));
}

// The slab's tokens of a range as tiles of right factors, [tiles][units][kColumns].
template <class A, class T>
void load_tokens(const Slab& slab, const Positions& range, const Tokens& t, std::int64_t channels,
                 typename T::Storage* tokens, typename A::Unit* tiles) {
  for (std::int64_t tile = 0; tile < range.tiles(); ++tile) {
    gather_tokens<T>(slab, t, channels, range.first(tile), range.count(tile), tokens);
    load_columns<A, T>(tokens, channels, range.count(tile), channels,
                       tiles + tile * units_of<A>(channels) * kColumns);
  }
}

inline float bias_of(const Linear& layer, std::int64_t row) {
  return layer.bias == nullptr ? 0.0f : layer.bias[row];
}

// Zeros in map[rows][stride] outside of the range's whole vectors, which were computed, and in the
// vector before the first row: its last value is a neighbour of the first position, and times a
// gradient of 0 what lies there by chance may be NaN.
inline void clear_around(const Positions& range, float* map, std::int64_t rows,
                         std::int64_t stride) {
  const std::int64_t end = range.begin + round_up(range.end - range.begin, kLanes);
  std::fill(map - kLanes, map, 0.0f);
  for (std::int64_t row = 0; row < rows; ++row, map += stride) {
    std::fill(map, map + range.begin, 0.0f);
    std::fill(map + end, map + stride, 0.0f);
  }
}

// Hidden channels [first, first + rows) before the convolution at all positions of the slab,
// hidden[rows][stride], 0 where there is no token. `x` is of slab.around(slab.halo).
template <class A>
void compute_map(const FeedForward& f, const Slab& slab, const typename A::Unit* weight,
                 std::int64_t first, std::int64_t rows, const typename A::Unit* x,
                 const std::int32_t* in_map, float* hidden, std::int64_t stride) {
  const Positions range = slab.around(slab.halo);
  const std::int64_t units = units_of<A>(f.sizes.channels);
  const Vec least =
      broadcast(f.sizes.relu_before_conv ? 0.0f : -std::numeric_limits<float>::infinity());
  for (std::int64_t tile = 0; tile < range.tiles(); ++tile) {
    const std::int64_t begin = range.first(tile), count = range.count(tile);
    multiply_chains(ByRows<A>{weight, units, units}, rows, x + tile * units * kColumns, kColumns,
                    count, hidden + begin, stride);
    for (std::int64_t row = 0; row < rows; ++row) {
      const float bias = bias_of(f.fc1, first + row);
      float* to = hidden + row * stride + begin;
      for (std::int64_t c = 0; c < count; c += kLanes)
        store(to + c, masked(max(least, load(to + c) + bias), in_map + begin + c));
    }
  }
  clear_around(range, hidden, rows, stride);
}

// Tiles [tiles][C][kColumns] of a slab, summed over the hidden channels' parts, which are `size`
// apart, and a bias or null, in place of the first part's.
inline void add_parts(std::int64_t channels, const float* bias, std::int64_t tiles, float* parts,
                      std::int64_t size, std::int64_t count) {
  for (std::int64_t row = 0; row < tiles * channels; ++row) {
    const float b = bias == nullptr ? 0.0f : bias[row % channels];
    for (std::int64_t c = 0; c < kColumns; c += kLanes) {
      float* to = parts + row * kColumns + c;
      Vec sum = load(to);
      for (std::int64_t part = 1; part < count; ++part) sum += load(to + part * size);
      store(to, sum + b);
    }
  }
}

// f of the activation that the sizes name.
template <class F>
void with_activation(Activation activation, F f) {
  if (activation == Activation::gelu)
    f(Gelu());
  else
    f(Relu());
}

}  // namespace
}  // namespace pvt_kernels::cpu
