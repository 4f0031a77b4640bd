// The gradients of a head's keys and values while the tiles of queries pass. Each thread takes
// consecutive tiles and keeps the sums of one head at a time in fp32. Where one thread begins a
// head and others continue it, their sums are added in the order of the threads, so that the result
// doesn't depend on their scheduling.
#pragma once

#include "cpu/attention_tile.h"

namespace pvt_kernels::cpu {
namespace {

// Where the gradients go, in the dtype; dkey_bias (B, heads, M) in fp32, if it is not null.
struct KeyGradientsTo {
  Heads dk, dv;
  float* dkey_bias;
};

// One thread's sums; nobody else writes them.
struct KeySums {
  // of the head at hand, if this thread has its first tile
  float* begun;
  // of the head whose first tile an earlier thread has: the first that this thread works on, or
  // none
  float* continued;
  // of the last few tiles, since rounding errors grow with the length of a chain of sums
  float* recent;

  KeySums(const AttentionSizes& s, Scratch& scratch) {
    for (float** sums : {&begun, &continued, &recent}) *sums = scratch.take(size(s));
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
void store_key_sums(const AttentionSizes& s, float* sums, std::int64_t batch_head,
                    const KeyGradientsTo& to) {
  using Storage = typename T::Storage;
  const std::int64_t channels = padded_channels(s.head_dim);
  auto [dk, dv, dkey_bias] = key_gradients(s, sums, to);
  for (std::int64_t key = 0; key < s.keys; ++key, dk += channels, dv += channels) {
    auto* k =
        const_cast<Storage*>(head_row<T>(to.dk, batch_head / s.heads, batch_head % s.heads, key));
    auto* v =
        const_cast<Storage*>(head_row<T>(to.dv, batch_head / s.heads, batch_head % s.heads, key));
    for (std::int64_t c = 0; c < s.head_dim; ++c) k[c] = T::from_float(dk[c] * s.scale);
    for (std::int64_t c = 0; c < s.head_dim; ++c) v[c] = T::from_float(dv[c]);
    if (dkey_bias != nullptr)
      to.dkey_bias[batch_head * s.keys + key] = sum(load(dkey_bias + key * kLanes)) * s.scale;
  }
}

// Adds `recent` to `sums`, and begins it anew.
inline void settle(const AttentionSizes& s, float* recent, float* sums) {
  for (std::int64_t i = 0; i < KeySums::size(s); i += kLanes) {
    store(sums + i, load(sums + i) + load(recent + i));
    store(recent + i, Vec{});
  }
}

// Calls tile_gradients(batch_head, tile, sums), which adds to the KeyGradients, for this thread's
// tiles, and stores the gradients of the heads that have all their tiles here.
template <class T, class F>
void sum_over_tiles(const AttentionSizes& s, const Tiles& tiles, int thread, int threads,
                    const KeySums& sums, const KeyGradientsTo& to, F tile_gradients) {
  constexpr std::int64_t kRecent = 16;
  const std::int64_t begin = tiles.begin(thread, threads), end = tiles.begin(thread + 1, threads);
  std::fill(sums.recent, sums.recent + KeySums::size(s), 0.0f);
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t batch_head = tiles.group(tile);
    const bool begun_here = batch_head * tiles.per_group >= begin;
    const bool ends_head = (tile + 1) % tiles.per_group == 0;
    float* of_head = begun_here ? sums.begun : sums.continued;
    if (tile == begin || tile % tiles.per_group == 0)
      std::fill(of_head, of_head + KeySums::size(s), 0.0f);
    tile_gradients(batch_head, tile, key_gradients(s, sums.recent, to));
    if (ends_head || tile + 1 == end || tile % kRecent == 0) settle(s, sums.recent, of_head);
    if (begun_here && ends_head) store_key_sums<T>(s, of_head, batch_head, to);
  }
}

// After all threads: completes the heads that one thread began and others continued, by adding what
// those continued to what it began. `sums_of(thread)` finds a thread's sums again.
template <class T, class F>
void add_continued_sums(const AttentionSizes& s, const Tiles& tiles, int threads,
                        const KeyGradientsTo& to, F sums_of) {
  for (int thread = 0; thread + 1 < threads; ++thread) {
    const std::int64_t begin = tiles.begin(thread, threads), end = tiles.begin(thread + 1, threads);
    // its last head ends here
    if (begin == end || end % tiles.per_group == 0) continue;
    const std::int64_t batch_head = tiles.group(end - 1);
    const std::int64_t head_end = (batch_head + 1) * tiles.per_group;
    // an earlier thread began it, and adds this one's part
    if (batch_head * tiles.per_group < begin) continue;
    float* const begun = sums_of(thread).begun;
    for (int other = thread + 1; other < threads && tiles.begin(other, threads) < head_end;
         ++other) {
      if (tiles.begin(other, threads) == tiles.begin(other + 1, threads)) continue;
      const float* const continued = sums_of(other).continued;
#pragma omp parallel for num_threads(threads)
      for (std::int64_t i = 0; i < KeySums::size(s); ++i) begun[i] += continued[i];
    }
    store_key_sums<T>(s, begun, batch_head, to);
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
