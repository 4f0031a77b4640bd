// Multi-head attention forward: a tile of tokens is projected to queries, attends head by head, and
// is projected again, all in cache. Compiled once for each code path.
#include "cpu/attention_tile.h"
#include "cpu/code_path.h"
#include "cpu/linear.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

template <class A, class T>
struct ForwardScratch {
  using Unit = typename A::Unit;
  RowWeight<A, T> q_weight, kv_weight, out_weight;
  Packed<A> k, v;

  ForwardScratch(const MultiHeadAttention& a, Scratch& shared)
      : q_weight(a.q.weight, a.channels(), a.channels(), shared),
        kv_weight(a.kv.weight, 2 * a.channels(), a.channels(), shared),
        out_weight(a.out.weight, a.channels(), a.channels(), shared),
        k(Packed<A>::by_key(a.sizes, shared)),
        v(Packed<A>::by_channel(a.sizes, shared)) {}

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

template <class T>
void forward(const MultiHeadAttention& a, void* result, void* o, void* kv, float* lse,
             void* workspace) {
  using A = typename ArithmeticFor<T>::type;
  using Storage = typename T::Storage;
  const AttentionSizes& s = a.sizes;
  const std::int64_t C = a.channels();
  Scratch shared_scratch(workspace);
  const ForwardScratch<A, T> shared(a, shared_scratch);
  Scratch size_of_thread(nullptr);
  typename ForwardScratch<A, T>::Thread(a, size_of_thread);

  const Heads k{kv, s.keys * 2 * C, 2 * C, s.head_dim};
  const Heads v{static_cast<const Storage*>(kv) + C, s.keys * 2 * C, 2 * C, s.head_dim};
  const Tiles keys(s.batch, s.keys, s.threads), queries(s.batch, s.queries, s.threads);
#pragma omp parallel num_threads(s.threads)
  {
    Scratch own(workspace, shared_scratch.bytes() + omp_get_thread_num() * size_of_thread.bytes());
    typename ForwardScratch<A, T>::Thread w(a, own);
    shared.q_weight.prepare();
    shared.kv_weight.prepare();
    shared.out_weight.prepare();
    // the weights' copies, if any, come from all threads
#pragma omp barrier
#pragma omp for schedule(static)
    for (std::int64_t tile = 0; tile < keys.total; ++tile) {
      const std::int64_t batch = keys.group(tile), first = keys.first(tile);
      const std::int64_t count = keys.count(tile);
      load_columns<A, T>(token_row<T>(a.y, batch, first), a.y.token_stride, count, C, w.tokens);
      project(shared.kv_weight, a.kv.bias, 0, 2 * C, w.tokens, count, w.result);
      Storage* rows = static_cast<Storage*>(kv) + (batch * s.keys + first) * 2 * C;
      store_columns<T>(w.result, count, 2 * C, 1.0f, [&](auto i) { return rows + i * 2 * C; });
    }
    for_each_key_block(s, [&](auto unit, auto first, auto count) {
      pack_by_key<A, T>(shared.k, k, s, unit, first, count);
      pack_by_channel<A, T>(shared.v, v, s, unit, first, count);
    });
#pragma omp for schedule(static)
    for (std::int64_t tile = 0; tile < queries.total; ++tile) {
      const std::int64_t batch = queries.group(tile), first = queries.first(tile);
      const std::int64_t count = queries.count(tile), columns = round_up(count, kLanes);
      load_columns<A, T>(token_row<T>(a.x, batch, first), a.x.token_stride, count, C, w.tokens);
      for (std::int64_t head = 0; head < s.heads; ++head) {
        const std::int64_t unit = batch * s.heads + head, channel = head * s.head_dim;
        project(shared.q_weight, a.q.bias, channel, s.head_dim, w.tokens, count, w.q);
        attend<A>(s, shared.k, shared.v, unit, as_units<A>(w.q, s.head_dim, columns), count,
                  w.o + channel * kColumns, lse + unit * s.queries + first, w.tile);
      }
      const std::int64_t row = (batch * s.queries + first) * C;
      if (o != nullptr)
        store_columns<T>(w.o, count, C, 1.0f,
                         [&](auto i) { return static_cast<Storage*>(o) + row + i * C; });
      project(shared.out_weight, a.out.bias, 0, C, as_units<A>(w.o, C, columns), count, w.result);
      store_columns<T>(w.result, count, C, 1.0f,
                       [&](auto i) { return static_cast<Storage*>(result) + row + i * C; });
    }
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
