// Attention backward in one pass over the queries: five products a tile (S again, dP, dQ, dK, dV).
// A thread keeps dK and dV of a head in fp32 while its queries pass; where several threads share a
// head, their sums are added in the order of the threads. Compiled once for each code path.

#include "cpu/code_path.h"
#include "cpu/threads.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

struct BackwardScratch {
  // of the head: K and V as panels, K as rows, and the sums dK and dV
  float *key_panels, *value_panels, *keys, *dk, *dv;
  // of the block of queries
  float *queries, *d_o, *dq, *p, *ds, *lse, *delta;
  // values on their way into panels, or rows of o
  float* rows;
  // this thread's share of dK and dV of a head that an earlier thread began
  float *shared_dk, *shared_dv;
  std::size_t bytes;

  BackwardScratch(const AttentionSizes& s, char* base) {
    const std::int64_t channels = padded_channels(s.head_dim);
    Scratch scratch(base);
    for (float** head : {&key_panels, &value_panels, &keys, &dk, &dv, &shared_dk, &shared_dv})
      *head = scratch.floats(round_up(s.keys, kKeys) * channels);
    for (float** block : {&queries, &d_o, &dq}) *block = scratch.floats(kQueries * channels);
    for (float** tile : {&p, &ds}) *tile = scratch.floats(kQueries * kKeys);
    for (float** row : {&lse, &delta}) *row = scratch.floats(kQueries);
    rows = scratch.floats(std::max(kQueries, kKeys) * channels);
    bytes = scratch.bytes();
  }
};

struct Gradients {
  void *dq, *dk, *dv;
};

// P = 2^(S - lse) over the scores S, and dS = P * (dP - delta) over dP, for kRows rows.
void differentiate_rows(float* s, float* dp, std::int64_t valid, const float* lse,
                        const float* delta) {
  const IntVec lanes = lane_indices();
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kKeys; j += kLanes, s += kLanes, dp += kLanes) {
      Vec p = exp2(load(s) - lse[i]);
      if (valid < kKeys) p = lanes + j < static_cast<int>(valid) ? p : Vec{};
      store(s, p);
      store(dp, p * (load(dp) - delta[i]));
    }
  }
}

// sums[valid][channels] += tile^T values: the weights of a key are a column of the tile. Keys up
// to a whole register block have weight 0, and room in the sums.
void accumulate_transposed(const float* tile, std::int64_t rows, const float* values,
                           std::int64_t valid, std::int64_t channels, float* sums) {
  std::int64_t key = 0;
  for (; key < std::min<std::int64_t>(valid, kKeys - kRows + 1); key += kRows)
    accumulate<kRows>({tile + key, 1, kKeys, rows}, values, channels, sums + key * channels,
                      channels, channels);
  if (key < valid)
    accumulate<kKeys % kRows>({tile + key, 1, kKeys, rows}, values, channels, sums + key * channels,
                              channels, channels);
}

template <class T>
void pack_head(const AttentionSizes& s, const Heads& k, const Heads& v, std::int64_t batch,
               std::int64_t head, BackwardScratch& w) {
  const std::int64_t channels = padded_channels(s.head_dim);
  for (std::int64_t first = 0; first < s.keys; first += kKeys) {
    const std::int64_t count = std::min<std::int64_t>(kKeys, s.keys - first);
    const std::int64_t offset = first * channels;
    pack_rows<T>(k, batch, head, first, count, s.head_dim, 1.0f, w.keys + offset, kKeys);
    transpose_to_panels(w.keys + offset, channels, w.key_panels + offset);
    pack_rows<T>(v, batch, head, first, count, s.head_dim, 1.0f, w.rows, kKeys);
    transpose_to_panels(w.rows, channels, w.value_panels + offset);
  }
  const std::int64_t sums = round_up(s.keys, kKeys) * channels;
  std::fill(w.dk, w.dk + sums, 0.0f);
  std::fill(w.dv, w.dv + sums, 0.0f);
}

template <class T>
void backward_block(const AttentionSizes& s, const Heads& d_o, const Heads& q, const Heads& o,
                    const float* lse, void* dq, std::int64_t batch, std::int64_t head,
                    std::int64_t first, BackwardScratch& w) {
  const std::int64_t d = s.head_dim, channels = padded_channels(d);
  const std::int64_t count = std::min<std::int64_t>(kQueries, s.queries - first);
  const std::int64_t rows = round_up(count, kRows);

  // rows up to a whole register block get q = do = 0 and delta = 0: nothing comes of them
  pack_rows<T>(o, batch, head, first, count, d, 1.0f, w.rows, rows);
  pack_rows<T>(d_o, batch, head, first, count, d, 1.0f, w.d_o, rows);
  pack_rows<T>(q, batch, head, first, count, d, s.scale * kLog2e, w.queries, rows);
  const float* lse_row = lse + (batch * s.heads + head) * s.queries + first;
  for (std::int64_t i = 0; i < rows; ++i) {
    Vec delta = {};
    for (std::int64_t c = i * channels; c < (i + 1) * channels; c += kLanes)
      delta += load(w.rows + c) * load(w.d_o + c);
    w.delta[i] = sum(delta);
    w.lse[i] = i < count ? lse_row[i] * kLog2e : 0.0f;
  }
  std::fill(w.dq, w.dq + rows * channels, 0.0f);

  for (std::int64_t key = 0; key < s.keys; key += kKeys) {
    const std::int64_t valid = std::min<std::int64_t>(kKeys, s.keys - key);
    const std::int64_t panel = key * channels;
    for (std::int64_t row = 0; row < rows; row += kRows) {
      float *p = w.p + row * kKeys, *ds = w.ds + row * kKeys;
      multiply_panels(w.queries + row * channels, w.key_panels + panel, channels, p);
      multiply_panels(w.d_o + row * channels, w.value_panels + panel, channels, ds);
      differentiate_rows(p, ds, valid, w.lse + row, w.delta + row);
      accumulate<kRows>({ds, kKeys, 1, valid}, w.keys + panel, channels, w.dq + row * channels,
                        channels, channels);
    }
    accumulate_transposed(w.p, rows, w.d_o, valid, channels, w.dv + panel);
    accumulate_transposed(w.ds, rows, w.queries, valid, channels, w.dk + panel);
  }
  store_rows<T>(w.dq, count, s.scale, dq, batch * s.queries + first, s.heads, head, d);
}

template <class T>
void store_head(const AttentionSizes& s, const float* dk, const float* dv, std::int64_t batch,
                std::int64_t head, const Gradients& g) {
  const std::int64_t first = batch * s.keys;
  // the packed queries carry the factor scale * log2(e)
  store_rows<T>(dk, s.keys, kLn2, g.dk, first, s.heads, head, s.head_dim);
  store_rows<T>(dv, s.keys, 1.0f, g.dv, first, s.heads, head, s.head_dim);
}

template <class T>
void backward(const AttentionSizes& s, const Heads& d_o, const Heads& q, const Heads& k,
              const Heads& v, const Heads& o, const float* lse, const Gradients& g,
              void* workspace) {
  const Blocks blocks(s);
  if (blocks.total == 0) return;
  char* base = static_cast<char*>(workspace);
  const std::size_t bytes = BackwardScratch(s, nullptr).bytes;
  const std::int64_t sums = round_up(s.keys, kKeys) * padded_channels(s.head_dim);
  int team = 1;
#pragma omp parallel num_threads(s.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (thread == 0) team = threads;
    BackwardScratch w(s, base + thread * bytes);
    const std::int64_t begin = blocks.begin(thread, threads);
    const std::int64_t end = blocks.begin(thread + 1, threads);
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t unit = block / blocks.per_head, i = block % blocks.per_head;
      const std::int64_t batch = unit / s.heads, head = unit % s.heads;
      if (block == begin || i == 0) pack_head<T>(s, k, v, batch, head, w);
      backward_block<T>(s, d_o, q, o, lse, g.dq, batch, head, i * kQueries, w);
      const bool last = i + 1 == blocks.per_head;
      const bool began = unit * blocks.per_head >= begin;
      if (last && began) store_head<T>(s, w.dk, w.dv, batch, head, g);
      if ((last || block + 1 == end) && !began) {
        std::copy(w.dk, w.dk + sums, w.shared_dk);
        std::copy(w.dv, w.dv + sums, w.shared_dv);
      }
    }
  }

  // A head that one thread began and others ended: the first one's sums are still in its dk and
  // dv, the others' in their shared_dk and shared_dv.
  for (int thread = 0; thread + 1 < team; ++thread) {
    const std::int64_t begin = blocks.begin(thread, team), end = blocks.begin(thread + 1, team);
    if (begin == end || end % blocks.per_head == 0) continue;
    const std::int64_t unit = (end - 1) / blocks.per_head;
    const std::int64_t head_end = (unit + 1) * blocks.per_head;
    if (unit * blocks.per_head < begin) continue;
    BackwardScratch first(s, base + thread * bytes);
    for (int other = thread + 1; other < team && blocks.begin(other, team) < head_end; ++other) {
      if (blocks.begin(other, team) == blocks.begin(other + 1, team)) continue;
      const BackwardScratch w(s, base + other * bytes);
#pragma omp parallel for num_threads(team)
      for (std::int64_t c = 0; c < sums; ++c) {
        first.dk[c] += w.shared_dk[c];
        first.dv[c] += w.shared_dv[c];
      }
    }
    store_head<T>(s, first.dk, first.dv, unit / s.heads, unit % s.heads, g);
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t attention_backward_workspace(const AttentionSizes& sizes) {
  return BackwardScratch(sizes, nullptr).bytes * sizes.threads;
}

void attention_backward(const AttentionSizes& sizes, Heads d_o, Heads q, Heads k, Heads v, Heads o,
                        const float* lse, void* dq, void* dk, void* dv, void* workspace) {
  const Gradients g{dq, dk, dv};
  with_dtype(sizes.dtype, [&](auto type) {
    backward<decltype(type)>(sizes, d_o, q, k, v, o, lse, g, workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
