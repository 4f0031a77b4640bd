// Attention backward in one pass over the queries: five products a tile (S again, dP, dQ, dK, dV).
// Compiled once for each code path.
#include "cpu/attention_tile.h"
#include "cpu/key_gradients.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

template <class A>
struct BackwardScratch {
  // shared: K and V as left factors over channels, K over keys
  Packed<A> k, v, k_by_channel;
  std::size_t shared_bytes, thread_bytes;

  BackwardScratch(const AttentionSizes& s, void* base) {
    Scratch shared(base), own(nullptr);
    k = Packed<A>::by_key(s, shared);
    v = Packed<A>::by_key(s, shared);
    k_by_channel = k.also_by_channel(s, shared);
    shared_bytes = shared.bytes();
    Thread(s, own);
    thread_bytes = own.bytes();
  }

  struct Thread {
    KeySums sums;
    BackwardTile<A> tile;

    Thread(const AttentionSizes& s, Scratch& own) : sums(s, own), tile(s, own) {}
  };
};

// delta = rowsum(do * o) of `count` queries; 0 for those up to a whole vector.
template <class T>
void sum_products(const Heads& d_o, const Heads& o, const AttentionSizes& s,
                  std::int64_t batch_head, std::int64_t first, std::int64_t count, float* delta) {
  for (std::int64_t i = 0; i < count; ++i) {
    const auto* a = head_row<T>(d_o, batch_head / s.heads, batch_head % s.heads, first + i);
    const auto* b = head_row<T>(o, batch_head / s.heads, batch_head % s.heads, first + i);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t c = 0; c < s.head_dim; ++c) sum += T::to_float(a[c]) * T::to_float(b[c]);
    delta[i] = sum;
  }
  std::fill(delta + count, delta + round_up(count, kLanes), 0.0f);
}

// One tile of queries as a right factor over channels and over tokens.
template <class A, class T>
void load_queries(const Heads& t, const AttentionSizes& s, std::int64_t batch_head,
                  std::int64_t first, std::int64_t count, typename A::Unit* columns,
                  typename A::Unit* rows) {
  const auto* from = head_row<T>(t, batch_head / s.heads, batch_head % s.heads, first);
  const std::int64_t stride = padded_channels(s.head_dim);
  load_columns<A, T>(from, t.token_stride, count, s.head_dim, columns);
  copy_row_units<A, T>(from, t.token_stride, count, s.head_dim, rows, stride);
  std::fill(rows + units_of<A>(count) * stride,
            rows + units_of<A>(round_up(count, kLanes)) * stride, typename A::Unit{});
}

template <class T>
void backward(const AttentionSizes& s, const Heads& d_o, const Heads& q, const Heads& k,
              const Heads& v, const float* key_bias, const Heads& o, const float* lse, void* dq,
              void* dk, void* dv, float* dkey_bias, void* workspace) {
  using A = typename ArithmeticFor<T>::type;
  const BackwardScratch<A> shared(s, workspace);
  const Tiles tiles(s.batch * s.heads, s.queries, s.threads);
  const std::int64_t channels = s.heads * s.head_dim;
  const KeyGradientsTo to{{dk, s.keys * channels, channels, s.head_dim},
                          {dv, s.keys * channels, channels, s.head_dim},
                          dkey_bias};
  const auto scratch_of = [&](int thread) {
    Scratch own(workspace, shared.shared_bytes + thread * shared.thread_bytes);
    return typename BackwardScratch<A>::Thread(s, own);
  };
  int team = 1;
#pragma omp parallel num_threads(s.threads)
  {
    const Registers<A> registers;
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (thread == 0) team = threads;
    auto w = scratch_of(thread);
    for_each_key_block(s, [&](auto batch_head, auto first, auto count) {
      pack_by_key<A, T>(shared.k, k, s, batch_head, first, count);
      pack_by_key<A, T>(shared.v, v, s, batch_head, first, count);
      if (A::kValues > 1)
        pack_by_channel<A, T>(shared.k_by_channel, k, s, batch_head, first, count);
    });
    sum_over_tiles<T>(
        s, tiles, thread, threads, w.sums, to,
        [&](auto batch_head, auto tile, const KeyGradients& sums) {
          const std::int64_t first = tiles.first(tile), count = tiles.count(tile);
          load_queries<A, T>(q, s, batch_head, first, count, w.tile.q, w.tile.q_rows);
          load_queries<A, T>(d_o, s, batch_head, first, count, w.tile.d_o, w.tile.d_o_rows);
          sum_products<T>(d_o, o, s, batch_head, first, count, w.tile.delta);
          load_lse(lse + batch_head * s.queries + first, count, w.tile);
          differentiate<A>(s, shared.k, shared.v, key_biases_of(key_bias, s, batch_head),
                           shared.k_by_channel, batch_head, count, sums, w.tile);
          auto* rows = static_cast<typename T::Storage*>(dq) +
                       (batch_head / s.heads * s.queries + first) * channels +
                       batch_head % s.heads * s.head_dim;
          store_columns<T>(w.tile.dq, count, s.head_dim, s.scale,
                           [&](auto i) { return rows + i * channels; });
        });
  }
  add_continued_sums<T>(s, tiles, team, to, [&](int thread) { return scratch_of(thread).sums; });
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t attention_backward_workspace(const AttentionSizes& sizes) {
  std::size_t bytes = 0;
  with_dtype(sizes.dtype, [&](auto type) {
    const BackwardScratch<typename ArithmeticFor<decltype(type)>::type> w(sizes, nullptr);
    bytes = w.shared_bytes + w.thread_bytes * sizes.threads;
  });
  return bytes;
}

void attention_backward(const AttentionSizes& sizes, Heads d_o, Heads q, Heads k, Heads v,
                        const float* key_bias, Heads o, const float* lse, void* dq, void* dk,
                        void* dv, float* dkey_bias, void* workspace) {
  with_dtype(sizes.dtype, [&](auto type) {
    backward<decltype(type)>(sizes, d_o, q, k, v, key_bias, o, lse, dq, dk, dv, dkey_bias,
                             workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
