// Multi-head attention backward. First head by head, like attention_backward.cpp, but with q and do
// projected anew for each tile, so that neither is ever stored; then the linear layers' gradients:
// each thread owns rows of the weights and, after that, tiles of tokens. Compiled once for each
// code path.
#include "cpu/attention_tile.h"
#include "cpu/key_gradients.h"
#include "cpu/linear.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

template <class A, class T>
struct BackwardScratch {
  using Unit = typename A::Unit;
  Packed<A> k, v, k_by_channel;
  RowWeight<A, T> q_weight;
  // the out projection's strips are the heads
  ColumnWeight<A, T> q_columns, kv_columns, out_columns;
  // (B, M, 2C), and of few tokens (B, N, C)
  typename T::Storage *dkv, *dq;

  BackwardScratch(const MultiHeadAttention& a, Scratch& shared)
      : k(Packed<A>::by_key(a.sizes, shared)),
        v(Packed<A>::by_key(a.sizes, shared)),
        k_by_channel(Packed<A>::by_channel(a.sizes, shared)),
        q_weight(a.q.weight, a.channels(), a.channels(), shared),
        q_columns(a.q.weight, a.channels(), a.channels(), strip_width(a), shared),
        kv_columns(a.kv.weight, 2 * a.channels(), a.channels(), strip_width(a), shared),
        out_columns(a.out.weight, a.channels(), a.channels(), a.sizes.head_dim, shared),
        dkv(reinterpret_cast<typename T::Storage*>(
            shared.take(a.sizes.batch * a.sizes.keys * 2 * a.channels()))),
        dq(reinterpret_cast<typename T::Storage*>(shared.take(
            few_tokens(a.sizes) ? a.sizes.batch * a.sizes.queries * a.channels() : 0))) {}

  // All channels, or of few tokens, whose tiles all threads share, each thread's.
  static std::int64_t strip_width(const MultiHeadAttention& a) {
    const std::int64_t C = a.channels(), threads = a.sizes.threads;
    return few_tokens(a.sizes) ? round_up((C + threads - 1) / threads, kColumns) : C;
  }

  struct Thread {
    // a tile of x, and of the gradient of what comes out of a layer, as right factors over channels
    Unit *x, *d_out;
    // one head's q, do and o of the tile, or a strip of the gradient of what goes into a layer
    float *q, *d_o, *o, *d_in;
    BackwardTile<A> tile;
    KeySums key_sums;
    WeightGradient<A> weight, kv_weight;

    Thread(const MultiHeadAttention& a, Scratch& own)
        : x(own.take<Unit>(units_of<A>(a.channels()) * kColumns)),
          d_out(own.take<Unit>(units_of<A>(2 * a.channels()) * kColumns)),
          q(head_tile(a, own)),
          d_o(head_tile(a, own)),
          o(head_tile(a, own)),
          d_in(own.take(a.channels() * kColumns)),
          tile(a.sizes, own),
          key_sums(a.sizes, own),
          weight(a.channels(), a.channels(), a.sizes.threads, own),
          kv_weight(2 * a.channels(), a.channels(), a.sizes.threads, own) {}

    static float* head_tile(const MultiHeadAttention& a, Scratch& own) {
      return own.take(padded_channels(a.sizes.head_dim) * kColumns);
    }
  };
};

inline void clear_columns(float* tile, std::int64_t rows, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = 0; row < rows; ++row)
    std::fill(tile + row * kColumns + begin, tile + row * kColumns + end, 0.0f);
}

// What differentiate() needs of one head of a tile whose tokens are in w.x and w.d_out.
template <class A, class T>
void prepare_tile(const MultiHeadAttention& a, const BackwardScratch<A, T>& shared,
                  const typename T::Storage* o, const float* lse, std::int64_t head,
                  std::int64_t count, typename BackwardScratch<A, T>::Thread& w) {
  const std::int64_t d = a.sizes.head_dim, C = a.channels(), stride = padded_channels(d);
  const std::int64_t columns = round_up(count, kLanes);
  project(shared.q_weight, a.q.bias, head * d, d, w.x, count, w.q);
  clear_columns(w.q, d, count, columns);
  columns_to_row_units<A>(w.q, d, columns, w.tile.q_rows, stride);
  copy_units<A>(w.q, d, columns, w.tile.q);

  multiply_chains(shared.out_columns.strip(head), d, w.d_out, kColumns, count, w.d_o, kColumns);
  columns_to_row_units<A>(w.d_o, d, columns, w.tile.d_o_rows, stride);
  load_columns<Floats, T>(o + head * d, C, count, d, w.o);
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    // of every fourth channel: a row's error of delta is in all its gradients
    Vec delta[4] = {};
    for (std::int64_t i = 0; i < d; ++i)
      delta[i % 4] += load(w.d_o + i * kColumns + c) * load(w.o + i * kColumns + c);
    store(w.tile.delta + c, (delta[0] + delta[1]) + (delta[2] + delta[3]));
  }
  copy_units<A>(w.d_o, d, columns, w.tile.d_o);
  load_lse(lse, count, w.tile.lse);
}

// A strip of the gradient of what goes into a layer, for a tile whose gradient of what comes out
// begins at `d_out`, to rows from `to` on; of a single strip, the two may be the same rows.
template <class A, class T>
void store_input_gradient(const ColumnWeight<A, T>& weight, std::int64_t strip, std::int64_t out,
                          std::int64_t in, const typename T::Storage* d_out, std::int64_t count,
                          typename T::Storage* to, typename BackwardScratch<A, T>::Thread& w) {
  const std::int64_t columns = weight.columns(strip);
  load_columns<A, T>(d_out, out, count, out, w.d_out);
  multiply_chains(weight.strip(strip), columns, w.d_out, kColumns, count, w.d_in, kColumns);
  to += weight.first_column(strip);
  store_columns<T>(w.d_in, count, columns, 1.0f, [&](auto i) { return to + i * in; });
}

template <class T>
void backward(const MultiHeadAttention& a, const Tokens& dresult, const void* o, const void* kv,
              const float* lse, void* dx, void* dy, const LinearGradient& dq,
              const LinearGradient& dkv, const LinearGradient& dout, void* workspace) {
  using A = typename ArithmeticFor<T>::type;
  using Storage = typename T::Storage;
  using Thread = typename BackwardScratch<A, T>::Thread;
  const AttentionSizes& s = a.sizes;
  const std::int64_t C = a.channels(), d = s.head_dim;
  Scratch shared_scratch(workspace), size_of_thread(nullptr);
  const BackwardScratch<A, T> shared(a, shared_scratch);
  Thread(a, size_of_thread);
  const auto scratch_of = [&](int thread) {
    Scratch own(workspace, shared_scratch.bytes() + thread * size_of_thread.bytes());
    return Thread(a, own);
  };

  const Heads k{kv, s.keys * 2 * C, 2 * C, d};
  const Heads v{static_cast<const Storage*>(kv) + C, s.keys * 2 * C, 2 * C, d};
  const KeyGradientsTo to{
      {shared.dkv, s.keys * 2 * C, 2 * C, d}, {shared.dkv + C, s.keys * 2 * C, 2 * C, d}, nullptr};
  const bool few = few_tokens(s);
  auto* dx_rows = static_cast<Storage*>(dx);
  // in the rows of dx, unless several threads share them
  Storage* dq_rows = few ? shared.dq : dx_rows;
  const auto* o_rows = static_cast<const Storage*>(o);
  const Tiles head_tiles(s.batch * s.heads, s.queries, s.threads);
  int team = 1;
#pragma omp parallel num_threads(s.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (thread == 0) team = threads;
    Thread w = scratch_of(thread);
    shared.q_weight.prepare();
    shared.q_columns.prepare();
    shared.kv_columns.prepare();
    shared.out_columns.prepare();
    for_each_key_block(s, [&](auto unit, auto first, auto count) {
      pack_by_key<A, T>(shared.k, k, s, unit, first, count);
      pack_by_key<A, T>(shared.v, v, s, unit, first, count);
      pack_by_channel<A, T>(shared.k_by_channel, k, s, unit, first, count);
    });
    sum_over_tiles<T>(
        s, head_tiles, thread, threads, w.key_sums, to,
        [&](auto unit, auto tile, const KeyGradients& sums) {
          const std::int64_t batch = unit / s.heads, head = unit % s.heads;
          const std::int64_t first = head_tiles.first(tile), count = head_tiles.count(tile);
          const std::int64_t row = (batch * s.queries + first) * C;
          load_columns<A, T>(token_row<T>(a.x, batch, first), a.x.token_stride, count, C, w.x);
          load_columns<A, T>(token_row<T>(dresult, batch, first), dresult.token_stride, count, C,
                             w.d_out);
          prepare_tile<A, T>(a, shared, o_rows + row, lse + unit * s.queries + first, head, count,
                             w);
          differentiate<A>(s, shared.k, shared.v, nullptr, shared.k_by_channel, unit, count, sums,
                           w.tile);
          store_columns<T>(w.tile.dq, count, d, s.scale,
                           [&](auto i) { return dq_rows + row + i * C + head * d; });
        });
  }
  add_shared_sums<T>(s, head_tiles, team, to,
                     [&](int thread) { return scratch_of(thread).key_sums; });

  const int sharing = few ? 1 : s.threads;
  const Tiles queries(s.batch, s.queries, sharing), keys(s.batch, s.keys, sharing);
  const std::int64_t strips = shared.q_columns.strips();
  const Tokens dq_tokens{dq_rows, s.queries * C, C};
  const Tokens o_tokens{o, s.queries * C, C};
  const Tokens dkv_rows{shared.dkv, s.keys * 2 * C, 2 * C};
#pragma omp parallel num_threads(team)
  {
    for (int part = omp_get_thread_num(); part < s.threads; part += omp_get_num_threads()) {
      Thread w = scratch_of(part);
      linear_gradient<A, T>(w.weight, part, C, s.batch, s.queries, o_tokens, dresult, dout);
      linear_gradient<A, T>(w.weight, part, C, s.batch, s.queries, a.x, dq_tokens, dq);
      linear_gradient<A, T>(w.kv_weight, part, 2 * C, s.batch, s.keys, a.y, dkv_rows, dkv);
    }
    // dq, which all threads read, makes way for dx
#pragma omp barrier
    Thread w = scratch_of(omp_get_thread_num());
#pragma omp for schedule(static) nowait
    for (std::int64_t i = 0; i < queries.total * strips; ++i) {
      const std::int64_t tile = i / strips;
      const std::int64_t row = (queries.group(tile) * s.queries + queries.first(tile)) * C;
      store_input_gradient(shared.q_columns, i % strips, C, C, dq_rows + row, queries.count(tile),
                           dx_rows + row, w);
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < keys.total * strips; ++i) {
      const std::int64_t tile = i / strips;
      const std::int64_t row = (keys.group(tile) * s.keys + keys.first(tile)) * C;
      store_input_gradient(shared.kv_columns, i % strips, 2 * C, C, shared.dkv + 2 * row,
                           keys.count(tile), static_cast<Storage*>(dy) + row, w);
    }
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t multi_head_attention_backward_workspace(const AttentionSizes& sizes) {
  const MultiHeadAttention a{sizes, {}, {}, {}, {}, {}};
  Scratch shared(nullptr), own(nullptr);
  with_dtype(sizes.dtype, [&](auto type) {
    using T = decltype(type);
    using Parts = BackwardScratch<typename ArithmeticFor<T>::type, T>;
    Parts(a, shared);
    typename Parts::Thread(a, own);
  });
  return shared.bytes() + own.bytes() * sizes.threads;
}

void multi_head_attention_backward(const MultiHeadAttention& a, Tokens dresult, const void* o,
                                   const void* kv, const float* lse, void* dx, void* dy,
                                   LinearGradient dq, LinearGradient dkv, LinearGradient dout,
                                   void* workspace) {
  with_dtype(a.sizes.dtype, [&](auto type) {
    backward<decltype(type)>(a, dresult, o, kv, lse, dx, dy, dq, dkv, dout, workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
