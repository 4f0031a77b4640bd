// What the kernels share: the shapes of their tiles, packing, the two register-blocked products,
// and scratch memory.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/attention.h"
#include "cpu/vec.h"

namespace pvt_kernels::cpu {
namespace {

// Queries in a block: their rows of packed q, do, o and dq stay in L1 and L2 while the keys pass.
constexpr int kQueries = 48;
// Keys in a block: with head_dim 64 its K and V, 16 KB each, stay in L1 while the queries pass.
constexpr int kKeys = 64;
// Rows of a register block.
constexpr int kRows = 6;
// Keys of a register block of scores.
constexpr int kTile = kBlockVectors * kLanes;
static_assert(kQueries % kRows == 0 && kKeys % kTile == 0);

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

inline std::int64_t round_up(std::int64_t x, std::int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// `count` rows of one head, converted to fp32 and multiplied by `factor`, into
// to[rows][channels]; what is beyond the head's channels or beyond `count` becomes 0.
template <class T>
void pack_rows(const Heads& from, std::int64_t batch, std::int64_t head, std::int64_t first,
               std::int64_t count, std::int64_t head_dim, float factor, float* to,
               std::int64_t rows) {
  const std::int64_t channels = padded_channels(head_dim);
  const auto* row = static_cast<const typename T::Storage*>(from.data) + batch * from.batch_stride +
                    head * from.head_stride + first * from.token_stride;
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t c = 0; c < head_dim; ++c) to[c] = T::to_float(row[c]) * factor;
    std::fill(to + head_dim, to + channels, 0.0f);
    row += from.token_stride;
    to += channels;
  }
  std::fill(to, to + (rows - count) * channels, 0.0f);
}

// rows[kKeys][channels] -> panels of kTile keys, each channels x kTile: the layout in which a
// register block of scores reads one channel of all its keys at once.
inline void transpose_to_panels(const float* rows, std::int64_t channels, float* panels) {
  for (int tile = 0; tile < kKeys; tile += kTile, panels += channels * kTile) {
    for (int key = 0; key < kTile; key += kLanes) {
      for (std::int64_t c = 0; c < channels; c += kLanes)
        transpose(rows + (tile + key) * channels + c, channels, panels + c * kTile + key, kTile);
    }
  }
}

// The fp32 rows[count][channels], times `factor`, to a contiguous (B, N, heads, d) tensor.
template <class T>
void store_rows(const float* rows, std::int64_t count, float factor, void* tensor,
                std::int64_t first_row, std::int64_t heads, std::int64_t head,
                std::int64_t head_dim) {
  auto* to = static_cast<typename T::Storage*>(tensor) + (first_row * heads + head) * head_dim;
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t c = 0; c < head_dim; ++c) to[c] = T::from_float(rows[c] * factor);
    rows += padded_channels(head_dim);
    to += heads * head_dim;
  }
}

// Length of a chain of sums of scores; rounding errors grow with it.
constexpr std::int64_t kChain = 64;

// scores[kRows][kKeys] = rows[kRows][channels] times the panels of kKeys keys.
inline void multiply_panels(const float* rows, const float* panels, std::int64_t channels,
                            float* scores) {
  for (int tile = 0; tile < kKeys; tile += kTile) {
    for (std::int64_t first = 0; first < channels; first += kChain) {
      Vec sum[kRows][kBlockVectors] = {};
      for (std::int64_t c = first; c < std::min(first + kChain, channels); ++c) {
#pragma GCC unroll 8
        for (int j = 0; j < kBlockVectors; ++j) {
          const Vec keys = load(panels + j * kLanes);
#pragma GCC unroll 8
          for (int i = 0; i < kRows; ++i) sum[i][j] += rows[i * channels + c] * keys;
        }
        panels += kTile;
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < kBlockVectors; ++j) {
          float* to = scores + i * kKeys + tile + j * kLanes;
          store(to, first == 0 ? sum[i][j] : load(to) + sum[i][j]);
        }
      }
    }
  }
}

// The weights of a product with `depth` rows of values: that of out row i and value row k is
// data[i * row_step + k * depth_step].
struct Weights {
  const float* data;
  std::int64_t row_step, depth_step, depth;
};

// out[Rows][..] = out * rescale + weights * values over Vectors vectors of channels; without
// rescale where that is nullptr.
template <int Rows, int Vectors, bool Rescale>
void accumulate_block(Weights weights, const float* values, std::int64_t value_stride, float* out,
                      std::int64_t out_stride, const float* rescale) {
  // from 0, and added to `out` at the end: rounding errors grow with the length of a chain of sums
  Vec sum[Rows][Vectors] = {};
  for (std::int64_t k = 0; k < weights.depth; ++k) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      const Vec value = load(values + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) sum[i][j] += weights.data[i * weights.row_step] * value;
    }
    weights.data += weights.depth_step;
    values += value_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      float* to = out + i * out_stride + j * kLanes;
      store(to, Rescale ? load(to) * rescale[i] + sum[i][j] : load(to) + sum[i][j]);
    }
  }
}

// accumulate_block over any whole number of vectors of channels.
template <int Rows, bool Rescale = false>
void accumulate(const Weights& weights, const float* values, std::int64_t value_stride, float* out,
                std::int64_t out_stride, std::int64_t channels, const float* rescale = nullptr) {
  std::int64_t c = 0;
  for (; c + kTile <= channels; c += kTile)
    accumulate_block<Rows, kBlockVectors, Rescale>(weights, values + c, value_stride, out + c,
                                                   out_stride, rescale);
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes)
    accumulate_block<Rows, 2, Rescale>(weights, values + c, value_stride, out + c, out_stride,
                                       rescale);
  for (; c < channels; c += kLanes)
    accumulate_block<Rows, 1, Rescale>(weights, values + c, value_stride, out + c, out_stride,
                                       rescale);
}

// Hands out pieces of one thread's share of the workspace; from a base of nullptr, only counts.
class Scratch {
 public:
  explicit Scratch(const void* base, std::size_t offset = 0)
      : base_(reinterpret_cast<std::uintptr_t>(base) + offset) {}

  // Whole cache lines, so that threads share none.
  float* floats(std::int64_t count) {
    auto* piece = reinterpret_cast<float*>(base_ + bytes_);
    bytes_ += static_cast<std::size_t>(round_up(count * 4, 64));
    return piece;
  }

  std::size_t bytes() const { return bytes_; }

 private:
  std::uintptr_t base_;
  std::size_t bytes_ = 0;
};

// The blocks of queries of all heads and images in a row, of which each thread takes an equal,
// consecutive part.
struct Blocks {
  std::int64_t per_head, total;

  explicit Blocks(const AttentionSizes& s)
      : per_head((s.queries + kQueries - 1) / kQueries), total(s.batch * s.heads * per_head) {}

  std::int64_t begin(int thread, int threads) const { return total * thread / threads; }
};

}  // namespace
}  // namespace pvt_kernels::cpu
