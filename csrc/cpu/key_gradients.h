// The gradients of a head's keys and values while the tiles of queries pass. Each thread takes
// consecutive tiles and keeps the sums of one head at a time in fp32; where several threads share a
// head, their sums are added in the order of the threads, so that the result doesn't depend on
// their scheduling.
#pragma once

#include "cpu/attention_tile.h"

namespace pvt_kernels::cpu {
namespace {

// Where the gradients go, in the dtype; dkey_bias (B, heads, M) in fp32, if it is not null.
struct KeyGradientsTo {
  Heads dk, dv;
  float* dkey_bias;
};

struct KeySums {
  // of the head at hand, of a head that an earlier thread began, and of the last few tiles, since
  // rounding errors grow with the length of a chain of sums
  float *own, *shared, *recent;

  KeySums(const AttentionSizes& s, Scratch& scratch) {
    for (float** sums : {&own, &shared, &recent}) *sums = scratch.take(size(s));
  }

  static std::int64_t channels_size(const AttentionSizes& s) {
    return s.keys * padded_channels(s.head_dim);
  }
  static std::int64_t size(const AttentionSizes& s) {
    return 2 * channels_size(s) + s.keys * kLanes;
  }
};

inline KeyGradients key_gradients(const AttentionSizes& s, float* sums, const KeyGradientsTo& to) {
  float* dv = sums + KeySums::channels_size(s);
  return {sums, dv, to.dkey_bias == nullptr ? nullptr : dv + KeySums::channels_size(s)};
}

// The packed queries and scores leave dk and dkey_bias to be multiplied by the scale.
template <class T>
void store_key_sums(const AttentionSizes& s, float* sums, std::int64_t unit,
                    const KeyGradientsTo& to) {
  using Storage = typename T::Storage;
  const std::int64_t channels = padded_channels(s.head_dim);
  auto [dk, dv, dkey_bias] = key_gradients(s, sums, to);
  for (std::int64_t key = 0; key < s.keys; ++key, dk += channels, dv += channels) {
    auto* k = const_cast<Storage*>(head_row<T>(to.dk, unit / s.heads, unit % s.heads, key));
    auto* v = const_cast<Storage*>(head_row<T>(to.dv, unit / s.heads, unit % s.heads, key));
    for (std::int64_t c = 0; c < s.head_dim; ++c) k[c] = T::from_float(dk[c] * s.scale);
    for (std::int64_t c = 0; c < s.head_dim; ++c) v[c] = T::from_float(dv[c]);
    if (dkey_bias != nullptr)
      to.dkey_bias[unit * s.keys + key] = sum(load(dkey_bias + key * kLanes)) * s.scale;
  }
}

// Adds `recent` to `sums`, and begins it anew.
inline void settle(const AttentionSizes& s, float* recent, float* sums) {
  for (std::int64_t i = 0; i < KeySums::size(s); i += kLanes) {
    store(sums + i, load(sums + i) + load(recent + i));
    store(recent + i, Vec{});
  }
}

// Calls tile_gradients(unit, tile, sums), which adds to the KeyGradients, for this thread's tiles.
template <class T, class F>
void sum_over_tiles(const AttentionSizes& s, const Tiles& tiles, int thread, int threads,
                    const KeySums& w, const KeyGradientsTo& to, F tile_gradients) {
  constexpr std::int64_t kRecent = 16;
  const std::int64_t begin = tiles.begin(thread, threads), end = tiles.begin(thread + 1, threads);
  std::fill(w.recent, w.recent + KeySums::size(s), 0.0f);
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t unit = tiles.group(tile);
    const bool began = unit * tiles.per_group >= begin;
    const bool ends = (tile + 1) % tiles.per_group == 0;
    float* sums = began ? w.own : w.shared;
    if (tile == begin || tile % tiles.per_group == 0)
      std::fill(sums, sums + KeySums::size(s), 0.0f);
    tile_gradients(unit, tile, key_gradients(s, w.recent, to));
    if (ends || tile + 1 == end || tile % kRecent == 0) settle(s, w.recent, sums);
    if (began && ends) store_key_sums<T>(s, sums, unit, to);
  }
}

// After all threads: the heads that one thread began and others ended. `sums_of(thread)` finds a
// thread's sums again.
template <class T, class F>
void add_shared_sums(const AttentionSizes& s, const Tiles& tiles, int threads,
                     const KeyGradientsTo& to, F sums_of) {
  for (int thread = 0; thread + 1 < threads; ++thread) {
    const std::int64_t begin = tiles.begin(thread, threads), end = tiles.begin(thread + 1, threads);
    if (begin == end || end % tiles.per_group == 0) continue;
    const std::int64_t unit = tiles.group(end - 1), head_end = (unit + 1) * tiles.per_group;
    if (unit * tiles.per_group < begin) continue;
    const KeySums first = sums_of(thread);
    for (int other = thread + 1; other < threads && tiles.begin(other, threads) < head_end;
         ++other) {
      if (tiles.begin(other, threads) == tiles.begin(other + 1, threads)) continue;
      const KeySums more = sums_of(other);
#pragma omp parallel for num_threads(threads)
      for (std::int64_t i = 0; i < KeySums::size(s); ++i) first.own[i] += more.shared[i];
    }
    store_key_sums<T>(s, first.own, unit, to);
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
