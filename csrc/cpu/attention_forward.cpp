// Attention forward, query-stationary: a tile of queries stays while blocks of keys pass. Compiled
// once for each code path.
#include "cpu/attention_tile.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

template <class A>
struct ForwardScratch {
  // shared
  Packed<A> k, v;
  std::size_t shared_bytes, thread_bytes;

  ForwardScratch(const AttentionSizes& s, void* base) {
    Scratch shared(base), own(nullptr);
    k = Packed<A>::by_key(s, shared);
    v = Packed<A>::by_channel(s, shared);
    shared_bytes = shared.bytes();
    Thread(s, own);
    thread_bytes = own.bytes();
  }

  struct Thread {
    typename A::Unit* q;
    float* out;
    ForwardTile<A> tile;

    Thread(const AttentionSizes& s, Scratch& own)
        : q(own.take<typename A::Unit>(units_of<A>(s.head_dim) * kColumns)),
          out(own.take(padded_channels(s.head_dim) * kColumns)),
          tile(own) {}
  };
};

template <class T>
void forward(const AttentionSizes& s, const Heads& q, const Heads& k, const Heads& v,
             const Biases& biases, void* o, void* result, float* lse, void* workspace) {
  using A = typename ArithmeticFor<T>::type;
  const ForwardScratch<A> shared(s, workspace);
  const Tiles tiles(s.batch * s.heads, s.queries, s.threads);
#pragma omp parallel num_threads(s.threads)
  {
    const Registers<A> registers;
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Scratch own(workspace, shared.shared_bytes + thread * shared.thread_bytes);
    typename ForwardScratch<A>::Thread w(s, own);
    for_each_key_block(s, [&](auto batch_head, auto first, auto count) {
      pack_by_key<A, T>(shared.k, k, s, batch_head, first, count);
      pack_by_channel<A, T>(shared.v, v, s, batch_head, first, count);
    });
    const std::int64_t end = tiles.begin(thread + 1, threads);
    for (std::int64_t tile = tiles.begin(thread, threads); tile < end; ++tile) {
      const std::int64_t batch_head = tiles.group(tile), first = tiles.first(tile);
      const std::int64_t batch = batch_head / s.heads, head = batch_head % s.heads,
                         count = tiles.count(tile);
      load_columns<A, T>(head_row<T>(q, batch, head, first), q.token_stride, count, s.head_dim,
                         w.q);
      attend<A>(s, shared.k, shared.v, key_biases_of(biases.keys, s, batch_head), batch_head, w.q,
                count, w.out, lse + batch_head * s.queries + first, w.tile);
      const std::int64_t row = ((batch * s.queries + first) * s.heads + head) * s.head_dim;
      for (void* to : {o, result}) {
        if (to == nullptr) continue;
        if (to == result && biases.result != nullptr)
          add_to_rows(w.out, s.head_dim, biases.result + head * s.head_dim);
        auto* rows = static_cast<typename T::Storage*>(to) + row;
        store_columns<T>(w.out, count, s.head_dim, 1.0f,
                         [&](auto i) { return rows + i * s.heads * s.head_dim; });
      }
    }
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t attention_forward_workspace(const AttentionSizes& sizes) {
  std::size_t bytes = 0;
  with_dtype(sizes.dtype, [&](auto type) {
    const ForwardScratch<typename ArithmeticFor<decltype(type)>::type> w(sizes, nullptr);
    bytes = w.shared_bytes + w.thread_bytes * sizes.threads;
  });
  return bytes;
}

void attention_forward(const AttentionSizes& sizes, Heads q, Heads k, Heads v, Biases biases,
                       void* o, void* result, float* lse, void* workspace) {
  with_dtype(sizes.dtype, [&](auto type) {
    forward<decltype(type)>(sizes, q, k, v, biases, o, result, lse, workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
