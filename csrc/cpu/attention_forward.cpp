// Attention forward, query-stationary: a block of queries stays while blocks of keys pass, with
// the online softmax of Milakov and Gimelshein (2018). Compiled once for each code path.

#include "cpu/code_path.h"
#include "cpu/threads.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

struct ForwardScratch {
  // of the head
  float *key_panels, *values;
  // of the block of queries, and a tile of its scores
  float *queries, *out, *maximum, *total, *scores;
  // keys on their way into panels
  float* keys;
  std::size_t bytes;

  ForwardScratch(const AttentionSizes& s, char* base) {
    const std::int64_t channels = padded_channels(s.head_dim);
    Scratch scratch(base);
    for (float** head : {&key_panels, &values})
      *head = scratch.floats(round_up(s.keys, kKeys) * channels);
    for (float** block : {&queries, &out}) *block = scratch.floats(kQueries * channels);
    maximum = scratch.floats(kQueries);
    total = scratch.floats(kQueries * kLanes);
    scores = scratch.floats(kRows * kKeys);
    keys = scratch.floats(kKeys * channels);
    bytes = scratch.bytes();
  }
};

// Turns kRows rows of base-2 scores into probabilities relative to each row's running maximum,
// adds them to the row's total, and sets `rescale` to what earlier results have to be multiplied
// by. Keys from `valid` on count for nothing.
void softmax_rows(float* scores, std::int64_t valid, float* maximum, float* total, float* rescale) {
  const IntVec lanes = lane_indices();
  for (int i = 0; i < kRows; ++i, scores += kKeys, total += kLanes) {
    Vec s[kKeys / kLanes];
    const Vec lowest = broadcast(-std::numeric_limits<float>::infinity());
    Vec highest = lowest;
    for (int j = 0; j < kKeys / kLanes; ++j) {
      s[j] = load(scores + j * kLanes);
      if (valid < kKeys) s[j] = lanes + j * kLanes < static_cast<int>(valid) ? s[j] : lowest;
      highest = max(highest, s[j]);
    }
    rescale[i] = 1.0f;
    // rare after the first blocks
    if (any_above(highest, maximum[i])) {
      const float raised = std::max(maximum[i], max_lane(highest));
      rescale[i] = exp2(broadcast(maximum[i] - raised))[0];
      maximum[i] = raised;
    }
    Vec row_total = load(total) * rescale[i];
    for (int j = 0; j < kKeys / kLanes; ++j) {
      Vec p = exp2(s[j] - maximum[i]);
      if (valid < kKeys) p = lanes + j * kLanes < static_cast<int>(valid) ? p : Vec{};
      row_total += p;
      store(scores + j * kLanes, p);
    }
    store(total, row_total);
  }
}

template <class T>
void pack_head(const AttentionSizes& s, const Heads& k, const Heads& v, std::int64_t batch,
               std::int64_t head, ForwardScratch& w) {
  const std::int64_t channels = padded_channels(s.head_dim);
  for (std::int64_t first = 0; first < s.keys; first += kKeys) {
    const std::int64_t count = std::min<std::int64_t>(kKeys, s.keys - first);
    pack_rows<T>(k, batch, head, first, count, s.head_dim, 1.0f, w.keys, kKeys);
    transpose_to_panels(w.keys, channels, w.key_panels + first * channels);
    pack_rows<T>(v, batch, head, first, count, s.head_dim, 1.0f, w.values + first * channels,
                 count);
  }
}

template <class T>
void forward_block(const AttentionSizes& s, const Heads& q, void* o, float* lse, std::int64_t batch,
                   std::int64_t head, std::int64_t first, ForwardScratch& w) {
  const std::int64_t channels = padded_channels(s.head_dim);
  const std::int64_t count = std::min<std::int64_t>(kQueries, s.queries - first);
  const std::int64_t rows = round_up(count, kRows);

  pack_rows<T>(q, batch, head, first, count, s.head_dim, s.scale * kLog2e, w.queries, rows);
  std::fill(w.out, w.out + rows * channels, 0.0f);
  std::fill(w.maximum, w.maximum + rows, -std::numeric_limits<float>::infinity());
  std::fill(w.total, w.total + rows * kLanes, 0.0f);

  for (std::int64_t key = 0; key < s.keys; key += kKeys) {
    const std::int64_t valid = std::min<std::int64_t>(kKeys, s.keys - key);
    for (std::int64_t row = 0; row < rows; row += kRows) {
      float rescale[kRows];
      multiply_panels(w.queries + row * channels, w.key_panels + key * channels, channels,
                      w.scores);
      softmax_rows(w.scores, valid, w.maximum + row, w.total + row * kLanes, rescale);
      accumulate<kRows, true>({w.scores, kKeys, 1, valid}, w.values + key * channels, channels,
                              w.out + row * channels, channels, channels, rescale);
    }
  }

  float* lse_row = lse + (batch * s.heads + head) * s.queries + first;
  for (std::int64_t i = 0; i < count; ++i) {
    const float total = sum(load(w.total + i * kLanes));
    lse_row[i] = (w.maximum[i] + std::log2(total)) * kLn2;
    store_rows<T>(w.out + i * channels, 1, 1.0f / total, o, batch * s.queries + first + i, s.heads,
                  head, s.head_dim);
  }
}

template <class T>
void forward(const AttentionSizes& s, const Heads& q, const Heads& k, const Heads& v, void* o,
             float* lse, void* workspace) {
  const Blocks blocks(s);
  const std::size_t bytes = ForwardScratch(s, nullptr).bytes;
#pragma omp parallel num_threads(s.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    ForwardScratch w(s, static_cast<char*>(workspace) + thread * bytes);
    std::int64_t packed = -1;
    const std::int64_t end = blocks.begin(thread + 1, threads);
    for (std::int64_t block = blocks.begin(thread, threads); block < end; ++block) {
      const std::int64_t unit = block / blocks.per_head;
      const std::int64_t batch = unit / s.heads, head = unit % s.heads;
      if (unit != packed) {
        pack_head<T>(s, k, v, batch, head, w);
        packed = unit;
      }
      forward_block<T>(s, q, o, lse, batch, head, block % blocks.per_head * kQueries, w);
    }
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t attention_forward_workspace(const AttentionSizes& sizes) {
  return ForwardScratch(sizes, nullptr).bytes * sizes.threads;
}

void attention_forward(const AttentionSizes& sizes, Heads q, Heads k, Heads v, void* o, float* lse,
                       void* workspace) {
  with_dtype(sizes.dtype,
             [&](auto type) { forward<decltype(type)>(sizes, q, k, v, o, lse, workspace); });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
