// dK and dV while the tiles of queries pass. Each thread takes consecutive tiles and keeps the sums
// of one head at a time in fp32; where several threads share a head, their sums are added in the
// order of the threads, so that the result doesn't depend on their scheduling.
#pragma once

#include "cpu/attention_tile.h"

namespace pvt_kernels::cpu {
namespace {

struct KeySums {
  // of the head at hand, and of a head that an earlier thread began
  float *dk, *dv, *shared_dk, *shared_dv;
  // of the last few tiles: rounding errors grow with the length of a chain of sums
  float *recent_dk, *recent_dv;

  KeySums(const AttentionSizes& s, Scratch& scratch) {
    for (float** sums : {&dk, &dv, &shared_dk, &shared_dv, &recent_dk, &recent_dv})
      *sums = scratch.take(size(s));
  }

  static std::int64_t size(const AttentionSizes& s) { return s.keys * padded_channels(s.head_dim); }
};

// Where dk and dv go, in the dtype; the packed queries and scores leave dk to be multiplied by the
// scale.
template <class T>
void store_key_sums(const AttentionSizes& s, const float* dk, const float* dv, std::int64_t unit,
                    const Heads& to_dk, const Heads& to_dv) {
  using Storage = typename T::Storage;
  const std::int64_t channels = padded_channels(s.head_dim);
  for (std::int64_t key = 0; key < s.keys; ++key, dk += channels, dv += channels) {
    auto* k = const_cast<Storage*>(head_row<T>(to_dk, unit / s.heads, unit % s.heads, key));
    auto* v = const_cast<Storage*>(head_row<T>(to_dv, unit / s.heads, unit % s.heads, key));
    for (std::int64_t c = 0; c < s.head_dim; ++c) k[c] = T::from_float(dk[c] * s.scale);
    for (std::int64_t c = 0; c < s.head_dim; ++c) v[c] = T::from_float(dv[c]);
  }
}

// Adds `recent` to `sums`, and begins it anew.
inline void settle(const AttentionSizes& s, float* recent, float* sums) {
  for (std::int64_t i = 0; i < KeySums::size(s); i += kLanes) {
    store(sums + i, load(sums + i) + load(recent + i));
    store(recent + i, Vec{});
  }
}

// Calls tile_gradients(unit, tile, dk, dv), which adds to the sums, for this thread's tiles.
template <class T, class F>
void sum_over_tiles(const AttentionSizes& s, const Tiles& tiles, int thread, int threads,
                    const KeySums& w, const Heads& to_dk, const Heads& to_dv, F tile_gradients) {
  constexpr std::int64_t kRecent = 16;
  const std::int64_t begin = tiles.begin(thread, threads), end = tiles.begin(thread + 1, threads);
  for (float* recent : {w.recent_dk, w.recent_dv})
    std::fill(recent, recent + KeySums::size(s), 0.0f);
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t unit = tiles.group(tile);
    const bool began = unit * tiles.per_group >= begin;
    const bool ends = (tile + 1) % tiles.per_group == 0;
    float *dk = began ? w.dk : w.shared_dk, *dv = began ? w.dv : w.shared_dv;
    if (tile == begin || tile % tiles.per_group == 0) {
      std::fill(dk, dk + KeySums::size(s), 0.0f);
      std::fill(dv, dv + KeySums::size(s), 0.0f);
    }
    tile_gradients(unit, tile, w.recent_dk, w.recent_dv);
    if (ends || tile + 1 == end || tile % kRecent == 0) {
      settle(s, w.recent_dk, dk);
      settle(s, w.recent_dv, dv);
    }
    if (began && ends) store_key_sums<T>(s, dk, dv, unit, to_dk, to_dv);
  }
}

// After all threads: the heads that one thread began and others ended. `sums_of(thread)` finds a
// thread's sums again.
template <class T, class F>
void add_shared_sums(const AttentionSizes& s, const Tiles& tiles, int threads, const Heads& to_dk,
                     const Heads& to_dv, F sums_of) {
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
      for (std::int64_t i = 0; i < KeySums::size(s); ++i) {
        first.dk[i] += more.shared_dk[i];
        first.dv[i] += more.shared_dv[i];
      }
    }
    store_key_sums<T>(s, first.dk, first.dv, unit, to_dk, to_dv);
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
