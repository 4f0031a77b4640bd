// The patches that the spatial reduction's convolution reads, in the token layout.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/spatial_reduction.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

// Depth of a chunk of a patch row: with 64 output channels its weights, 32 KB, stay in L1.
constexpr int kDepth = 128;

// Patches in a block: their rows of dz or of the convolution's output stay in cache.
constexpr int kPatches = 48;
static_assert(kPatches % kRows == 0);

// Fewer where there are too few patches for all threads.
inline std::int64_t patches_per_block(const SpatialReductionSizes& s) {
  const std::int64_t share = round_up((s.patches() + s.threads - 1) / s.threads, kRows);
  return std::min<std::int64_t>(std::max<std::int64_t>(share, kRows), kPatches);
}

// One of the R rows of a patch is R * C values side by side; a chunk is up to kDepth of them.
struct Chunk {
  std::int64_t patch_row, offset, count;
};

inline std::int64_t chunks_per_row(const SpatialReductionSizes& s) {
  return (s.sr_ratio * s.channels + kDepth - 1) / kDepth;
}

inline Chunk chunk(const SpatialReductionSizes& s, std::int64_t index) {
  const std::int64_t offset = index % chunks_per_row(s) * kDepth;
  return {index / chunks_per_row(s), offset,
          std::min<std::int64_t>(kDepth, s.sr_ratio * s.channels - offset)};
}

// Where the chunk's values stand in the patch, in the order (R, R, C).
inline std::int64_t depth_of(const SpatialReductionSizes& s, const Chunk& c) {
  return c.patch_row * s.sr_ratio * s.channels + c.offset;
}

// Index of the token that a patch's row begins with, within its image.
inline std::int64_t first_token(const SpatialReductionSizes& s, std::int64_t patch,
                                std::int64_t patch_row) {
  const std::int64_t index = patch % s.patches_per_image();
  const std::int64_t row = index / s.patches_across() * s.sr_ratio + patch_row;
  return row * s.width + index % s.patches_across() * s.sr_ratio;
}

// Calls f(i, token, channel, count) for the pieces of the chunk that lie within one token, i being
// where a piece begins in the chunk.
template <class F>
void for_each_piece(const SpatialReductionSizes& s, const Chunk& c, F f) {
  for (std::int64_t i = 0; i < c.count;) {
    const std::int64_t channel = (c.offset + i) % s.channels;
    const std::int64_t count = std::min(s.channels - channel, c.count - i);
    f(i, (c.offset + i) / s.channels, channel, count);
    i += count;
  }
}

// The chunk of `count` patches, as fp32, into to[rows][kDepth]; rows beyond `count` become 0.
template <class T>
void gather(const SpatialReductionSizes& s, const Tokens& x, std::int64_t first, std::int64_t count,
            std::int64_t rows, const Chunk& c, float* to) {
  const auto* data = static_cast<const typename T::Storage*>(x.data);
  for (std::int64_t p = first; p < first + count; ++p, to += kDepth) {
    const auto* begin = data + p / s.patches_per_image() * x.batch_stride +
                        first_token(s, p, c.patch_row) * x.token_stride;
    for_each_piece(s, c, [&](auto i, auto token, auto channel, auto length) {
      const auto* from = begin + token * x.token_stride + channel;
      for (std::int64_t j = 0; j < length; ++j) to[i + j] = T::to_float(from[j]);
    });
  }
  std::fill(to, to + (rows - count) * kDepth, 0.0f);
}

// The transpose of gather: rows[count][kDepth] to the tokens of a contiguous (B, H*W, C) tensor.
template <class T>
void scatter(const SpatialReductionSizes& s, const float* rows, std::int64_t first,
             std::int64_t count, const Chunk& c, void* tensor) {
  auto* data = static_cast<typename T::Storage*>(tensor);
  const std::int64_t tokens = s.height * s.width;
  for (std::int64_t p = first; p < first + count; ++p, rows += kDepth) {
    const std::int64_t begin = p / s.patches_per_image() * tokens + first_token(s, p, c.patch_row);
    auto* to = data + begin * s.channels + c.offset;
    for (std::int64_t j = 0; j < c.count; ++j) to[j] = T::from_float(rows[j]);
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
