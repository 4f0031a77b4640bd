// Multi-head attention backward, in two parallel regions. First head by head, like
// attention_backward.cpp, but with q and do projected anew for each tile, so that neither is ever
// stored; it leaves dq and dkv. Then the linear layers' gradients: each thread owns rows of the
// weights and, after that, tiles of tokens. Compiled once for each code path.
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
        k_by_channel(k.also_by_channel(a.sizes, shared)),
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
    Unit *x, *output_gradient;
    // one head's q, do and o of the tile, or a strip of the gradient of what goes into a layer
    float *q, *d_o, *o, *input_gradient;
    BackwardTile<A> tile;
    KeySums key_sums;
    WeightGradient<A> weight, kv_weight;

    Thread(const MultiHeadAttention& a, Scratch& own)
        : x(own.take<Unit>(units_of<A>(a.channels()) * kColumns)),
          output_gradient(own.take<Unit>(units_of<A>(2 * a.channels()) * kColumns)),
          q(head_tile(a, own)),
          d_o(head_tile(a, own)),
          o(head_tile(a, own)),
          input_gradient(own.take(a.channels() * kColumns)),
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

// What differentiate() needs of one head of a tile whose tokens are in w.x and w.output_gradient.
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

  multiply_chains(shared.out_columns.strip(head), d, w.output_gradient, kColumns, count, w.d_o,
                  kColumns);
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
  load_lse(lse, count, w.tile);
}

// A strip of the gradient of what goes into a layer, for a tile whose gradient of what comes out
// begins at `output_gradient`, to rows from `to` on. Of a single strip the two may be the same
// rows: all of them are read before any is written.
template <class A, class T>
void store_input_gradient(const ColumnWeight<A, T>& weight, std::int64_t strip,
                          std::int64_t out_features, std::int64_t in_features,
                          const typename T::Storage* output_gradient, std::int64_t count,
                          typename T::Storage* to, typename BackwardScratch<A, T>::Thread& w) {
  const std::int64_t columns = weight.columns(strip);
  load_columns<A, T>(output_gradient, out_features, count, out_features, w.output_gradient);
  multiply_chains(weight.strip(strip), columns, w.output_gradient, kColumns, count,
                  w.input_gradient, kColumns);
  to += weight.first_column(strip);
  store_columns<T>(w.input_gradient, count, columns, 1.0f,
                   [&](auto i) { return to + i * in_features; });
}

struct Gradients {
  void *dx, *dy;
  LinearGradient q, kv, out;
};

template <class T>
class Backward {
 public:
  Backward(const MultiHeadAttention& a, const Tokens& dresult, const void* o, const void* kv,
           const float* lse, const Gradients& to, void* workspace)
      : a_(a),
        dresult_(dresult),
        o_(static_cast<const Storage*>(o)),
        kv_(static_cast<const Storage*>(kv)),
        lse_(lse),
        to_(to),
        workspace_(workspace),
        shared_scratch_(workspace),
        shared_(a, shared_scratch_),
        few_(few_tokens(a.sizes)),
        dq_(few_ ? shared_.dq : static_cast<Storage*>(to.dx)) {
    Scratch own(nullptr);
    Thread(a, own);
    thread_bytes_ = own.bytes();
  }

  void run() const {
    const int team = differentiate_heads();
    differentiate_layers(team);
  }

 private:
  using A = typename ArithmeticFor<T>::type;
  using Storage = typename T::Storage;
  using Thread = typename BackwardScratch<A, T>::Thread;

  Thread scratch_of(int thread) const {
    Scratch own(workspace_, shared_scratch_.bytes() + thread * thread_bytes_);
    return Thread(a_, own);
  }

  // dq and dkv, from which the layers' gradients follow. Returns the number of threads.
  int differentiate_heads() const {
    const AttentionSizes& s = a_.sizes;
    const std::int64_t C = a_.channels(), d = s.head_dim;
    const Heads k{kv_, s.keys * 2 * C, 2 * C, d}, v{kv_ + C, s.keys * 2 * C, 2 * C, d};
    const KeyGradientsTo to{{shared_.dkv, s.keys * 2 * C, 2 * C, d},
                            {shared_.dkv + C, s.keys * 2 * C, 2 * C, d},
                            nullptr};
    const Tiles tiles(s.batch * s.heads, s.queries, s.threads);
    int team = 1;
#pragma omp parallel num_threads(s.threads)
    {
      const Registers<A> registers;
      const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
      if (thread == 0) team = threads;
      Thread w = scratch_of(thread);
      shared_.q_weight.prepare();
      shared_.q_columns.prepare();
      shared_.kv_columns.prepare();
      shared_.out_columns.prepare();
      for_each_key_block(s, [&](auto batch_head, auto first, auto count) {
        pack_by_key<A, T>(shared_.k, k, s, batch_head, first, count);
        pack_by_key<A, T>(shared_.v, v, s, batch_head, first, count);
        if (A::kValues > 1)
          pack_by_channel<A, T>(shared_.k_by_channel, k, s, batch_head, first, count);
      });
      // whose tokens are in w.x and w.output_gradient: where a tile holds all of an image, they are
      // turned once for all heads
      std::int64_t loaded = -1;
      sum_over_tiles<T>(s, tiles, thread, threads, w.key_sums, to,
                        [&](auto batch_head, auto tile, const KeyGradients& sums) {
                          const std::int64_t batch = batch_head / s.heads,
                                             head = batch_head % s.heads;
                          const std::int64_t first = tiles.first(tile), count = tiles.count(tile);
                          const std::int64_t row = (batch * s.queries + first) * C;
                          if (row != loaded) {
                            load_columns<A, T>(token_row<T>(a_.x, batch, first), a_.x.token_stride,
                                               count, C, w.x);
                            load_columns<A, T>(token_row<T>(dresult_, batch, first),
                                               dresult_.token_stride, count, C, w.output_gradient);
                            loaded = row;
                          }
                          prepare_tile<A, T>(a_, shared_, o_ + row,
                                             lse_ + batch_head * s.queries + first, head, count, w);
                          differentiate<A>(s, shared_.k, shared_.v, nullptr, shared_.k_by_channel,
                                           batch_head, count, sums, w.tile);
                          store_columns<T>(w.tile.dq, count, d, s.scale,
                                           [&](auto i) { return dq_ + row + i * C + head * d; });
                        });
    }
    add_continued_sums<T>(s, tiles, team, to,
                          [&](int thread) { return scratch_of(thread).key_sums; });
    return team;
  }

  // The gradients of the weights and biases, then those of x and y.
  void differentiate_layers(int team) const {
    const AttentionSizes& s = a_.sizes;
    const std::int64_t C = a_.channels();
    const int sharing = few_ ? 1 : s.threads;
    const Tiles queries(s.batch, s.queries, sharing), keys(s.batch, s.keys, sharing);
    const std::int64_t strips = shared_.q_columns.strips();
    auto *dx = static_cast<Storage*>(to_.dx), *dy = static_cast<Storage*>(to_.dy);
    const Tokens dq{dq_, s.queries * C, C};
    const Tokens o{o_, s.queries * C, C};
    const Tokens dkv{shared_.dkv, s.keys * 2 * C, 2 * C};
#pragma omp parallel num_threads(team)
    {
      const Registers<A> registers;
      for (int part = omp_get_thread_num(); part < s.threads; part += omp_get_num_threads()) {
        Thread w = scratch_of(part);
        linear_gradient<A, T>(w.weight, part, C, s.batch, s.queries, o, dresult_, to_.out);
        linear_gradient<A, T>(w.weight, part, C, s.batch, s.queries, a_.x, dq, to_.q);
        linear_gradient<A, T>(w.kv_weight, part, 2 * C, s.batch, s.keys, a_.y, dkv, to_.kv);
      }
      // until here every thread reads all of dq, which makes way for dx
#pragma omp barrier
      Thread w = scratch_of(omp_get_thread_num());
#pragma omp for schedule(static) nowait
      for (std::int64_t i = 0; i < queries.total * strips; ++i) {
        const std::int64_t tile = i / strips;
        const std::int64_t row = (queries.group(tile) * s.queries + queries.first(tile)) * C;
        store_input_gradient(shared_.q_columns, i % strips, C, C, dq_ + row, queries.count(tile),
                             dx + row, w);
      }
#pragma omp for schedule(static)
      for (std::int64_t i = 0; i < keys.total * strips; ++i) {
        const std::int64_t tile = i / strips;
        const std::int64_t row = (keys.group(tile) * s.keys + keys.first(tile)) * C;
        store_input_gradient(shared_.kv_columns, i % strips, 2 * C, C, shared_.dkv + 2 * row,
                             keys.count(tile), dy + row, w);
      }
    }
  }

  const MultiHeadAttention& a_;
  const Tokens dresult_;
  const Storage *o_, *kv_;
  const float* lse_;
  const Gradients to_;
  const void* workspace_;
  Scratch shared_scratch_;
  BackwardScratch<A, T> shared_;
  std::size_t thread_bytes_;
  bool few_;
  // (B, N, C). It lies in dx, and a thread that turns a tile of it into dx overwrites what it has
  // read. Of few tokens several threads read a tile, each for a strip of dx: then it is scratch.
  Storage* dq_;
};

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
                                   LinearGradient q_gradient, LinearGradient kv_gradient,
                                   LinearGradient out_gradient, void* workspace) {
  const Gradients to{dx, dy, q_gradient, kv_gradient, out_gradient};
  with_dtype(a.sizes.dtype, [&](auto type) {
    Backward<decltype(type)>(a, dresult, o, kv, lse, to, workspace).run();
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
