// Multi-head attention forward: a tile of tokens is projected to queries, attends head by head, and
// is projected again, all in cache. Compiled once for each code path.
#include "cpu/attention_tile.h"
#include "cpu/linear.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

template <class A, class T>
struct ForwardScratch {
  using Unit = typename A::Unit;
  RowWeight<A, T> q_weight, kv_weight, out_weight;
  Packed<A> k, v;
  // (B, N, C), of few tokens
  typename T::Storage* o;

  ForwardScratch(const MultiHeadAttention& a, Scratch& shared)
      : q_weight(a.q.weight, a.channels(), a.channels(), shared),
        kv_weight(a.kv.weight, 2 * a.channels(), a.channels(), shared),
        out_weight(a.out.weight, a.channels(), a.channels(), shared),
        k(Packed<A>::by_key(a.sizes, shared)),
        v(Packed<A>::by_channel(a.sizes, shared)),
        o(reinterpret_cast<typename T::Storage*>(shared.take(
            few_tokens(a.sizes) ? a.sizes.batch * a.sizes.queries * a.channels() : 0))) {}

  struct Thread {
    // a tile of tokens, of one head's queries, of o, and of results: of k and v, or of the layer
    Unit* tokens;
    float *q, *o, *result;
    ForwardTile<A> tile;

    Thread(const MultiHeadAttention& a, Scratch& own)
        : tokens(own.take<Unit>(units_of<A>(a.channels()) * kColumns)),
          q(own.take(a.sizes.head_dim * kColumns)),
          o(own.take(a.channels() * kColumns)),
          result(own.take(2 * a.channels() * kColumns)),
          tile(own) {}
  };
};

// One head's attention of a tile whose tokens are in w.tokens, to out[head_dim][kColumns].
template <class A, class T>
void attend_projected(const MultiHeadAttention& a, const ForwardScratch<A, T>& shared,
                      std::int64_t batch, std::int64_t head, std::int64_t first, std::int64_t count,
                      float* out, float* lse, typename ForwardScratch<A, T>::Thread& w) {
  const AttentionSizes& s = a.sizes;
  const std::int64_t batch_head = batch * s.heads + head;
  project(shared.q_weight, a.q.bias, head * s.head_dim, s.head_dim, w.tokens, count, w.q);
  attend<A>(s, shared.k, shared.v, nullptr, batch_head,
            as_units<A>(w.q, s.head_dim, round_up(count, kLanes)), count, out,
            lse + batch_head * s.queries + first, w.tile);
}

// Rows [rows.first, rows.first + rows.count) of a layer, for a tile of tokens in w.tokens, to the
// same columns of token rows that are `stride` apart.
template <class A, class T>
void project_rows(const RowWeight<A, T>& weight, const float* bias, const Part& rows,
                  std::int64_t count, typename T::Storage* to, std::int64_t stride,
                  typename ForwardScratch<A, T>::Thread& w) {
  project(weight, bias, rows.first, rows.count, w.tokens, count, w.result);
  store_columns<T>(w.result, count, rows.count, 1.0f,
                   [&](auto i) { return to + i * stride + rows.first; });
}

// The queries' part where there are few tokens: all threads share a tile. They divide its heads and
// then the rows of the out projection, so that every weight is read by one of them.
template <class A, class T>
void ask_together(const MultiHeadAttention& a, const ForwardScratch<A, T>& shared,
                  typename T::Storage* result, typename T::Storage* o, float* lse,
                  typename ForwardScratch<A, T>::Thread& w) {
  const AttentionSizes& s = a.sizes;
  const std::int64_t C = a.channels(), parts = s.threads;
  const Tiles queries(s.batch, s.queries, 1);
  // whose tokens are in w.tokens: for the heads of a tile they are turned once
  std::int64_t loaded = -1;
#pragma omp for schedule(static)
  for (std::int64_t i = 0; i < queries.total * s.heads; ++i) {
    const std::int64_t tile = i / s.heads, batch = queries.group(tile), first = queries.first(tile);
    const std::int64_t count = queries.count(tile), head = i % s.heads;
    if (tile != loaded)
      load_columns<A, T>(token_row<T>(a.x, batch, first), a.x.token_stride, count, C, w.tokens);
    loaded = tile;
    attend_projected<A, T>(a, shared, batch, head, first, count, w.o, lse, w);
    auto* rows = o + (batch * s.queries + first) * C + head * s.head_dim;
    store_columns<T>(w.o, count, s.head_dim, 1.0f, [&](auto i) { return rows + i * C; });
  }
#pragma omp for schedule(static)
  for (std::int64_t i = 0; i < queries.total * parts; ++i) {
    const std::int64_t tile = i / parts, count = queries.count(tile);
    const std::int64_t row = (queries.group(tile) * s.queries + queries.first(tile)) * C;
    load_columns<A, T>(o + row, C, count, C, w.tokens);
    project_rows<A, T>(shared.out_weight, a.out.bias, part(C, i % parts, parts), count,
                       result + row, C, w);
  }
}

// The same where each thread has tiles of its own, in whose passage q and o stay in cache.
template <class A, class T>
void ask(const MultiHeadAttention& a, const ForwardScratch<A, T>& shared,
         typename T::Storage* result, typename T::Storage* o, float* lse,
         typename ForwardScratch<A, T>::Thread& w) {
  const AttentionSizes& s = a.sizes;
  const std::int64_t C = a.channels();
  const Tiles queries(s.batch, s.queries, s.threads);
#pragma omp for schedule(static)
  for (std::int64_t tile = 0; tile < queries.total; ++tile) {
    const std::int64_t batch = queries.group(tile), first = queries.first(tile);
    const std::int64_t count = queries.count(tile), row = (batch * s.queries + first) * C;
    load_columns<A, T>(token_row<T>(a.x, batch, first), a.x.token_stride, count, C, w.tokens);
    for (std::int64_t head = 0; head < s.heads; ++head)
      attend_projected<A, T>(a, shared, batch, head, first, count,
                             w.o + head * s.head_dim * kColumns, lse, w);
    if (o != nullptr)
      store_columns<T>(w.o, count, C, 1.0f, [&](auto i) { return o + row + i * C; });
    project(shared.out_weight, a.out.bias, 0, C, as_units<A>(w.o, C, round_up(count, kLanes)),
            count, w.result);
    store_columns<T>(w.result, count, C, 1.0f, [&](auto i) { return result + row + i * C; });
  }
}

template <class T>
void forward(const MultiHeadAttention& a, void* to_result, void* to_o, void* to_kv, float* lse,
             void* workspace) {
  using A = typename ArithmeticFor<T>::type;
  using Storage = typename T::Storage;
  const AttentionSizes& s = a.sizes;
  const std::int64_t C = a.channels();
  Scratch shared_scratch(workspace);
  const ForwardScratch<A, T> shared(a, shared_scratch);
  Scratch size_of_thread(nullptr);
  typename ForwardScratch<A, T>::Thread(a, size_of_thread);

  auto *result = static_cast<Storage*>(to_result), *o = static_cast<Storage*>(to_o);
  auto* kv = static_cast<Storage*>(to_kv);
  const Heads k{kv, s.keys * 2 * C, 2 * C, s.head_dim};
  const Heads v{kv + C, s.keys * 2 * C, 2 * C, s.head_dim};
  const bool few = few_tokens(s);
  // of few tokens the threads divide the rows of the layer, else the tiles
  const std::int64_t parts = few ? s.threads : 1;
  const Tiles keys(s.batch, s.keys, few ? 1 : s.threads);
#pragma omp parallel num_threads(s.threads)
  {
    const Registers<A> registers;
    Scratch own(workspace, shared_scratch.bytes() + omp_get_thread_num() * size_of_thread.bytes());
    typename ForwardScratch<A, T>::Thread w(a, own);
    shared.q_weight.prepare();
    shared.kv_weight.prepare();
    shared.out_weight.prepare();
    // the weights' copies, if any, come from all threads
#pragma omp barrier
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < keys.total * parts; ++i) {
      const std::int64_t tile = i / parts, batch = keys.group(tile), first = keys.first(tile);
      const std::int64_t count = keys.count(tile);
      load_columns<A, T>(token_row<T>(a.y, batch, first), a.y.token_stride, count, C, w.tokens);
      project_rows<A, T>(shared.kv_weight, a.kv.bias, part(2 * C, i % parts, parts), count,
                         kv + (batch * s.keys + first) * 2 * C, 2 * C, w);
    }
    for_each_key_block(s, [&](auto batch_head, auto first, auto count) {
      pack_by_key<A, T>(shared.k, k, s, batch_head, first, count);
      pack_by_channel<A, T>(shared.v, v, s, batch_head, first, count);
    });
    if (few)
      ask_together<A, T>(a, shared, result, o == nullptr ? shared.o : o, lse, w);
    else
      ask<A, T>(a, shared, result, o, lse, w);
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t multi_head_attention_forward_workspace(const AttentionSizes& sizes) {
  const MultiHeadAttention a{sizes, {}, {}, {}, {}, {}};
  Scratch shared(nullptr), own(nullptr);
  with_dtype(sizes.dtype, [&](auto type) {
    using T = decltype(type);
    using Parts = ForwardScratch<typename ArithmeticFor<T>::type, T>;
    Parts(a, shared);
    typename Parts::Thread(a, own);
  });
  return shared.bytes() + own.bytes() * sizes.threads;
}

void multi_head_attention_forward(const MultiHeadAttention& a, void* result, void* o, void* kv,
                                  float* lse, void* workspace) {
  with_dtype(a.sizes.dtype,
             [&](auto type) { forward<decltype(type)>(a, result, o, kv, lse, workspace); });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
