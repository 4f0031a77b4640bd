// Feed-forward network forward: a slab of tokens goes through all steps for some hidden channels at
// a time, which stay in cache from the first layer to the sums of the second. Compiled once for
// each code path.
#include "cpu/hidden.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

// Of a slab: what is read again for every chunk of hidden channels comes from the outer caches.
constexpr std::int64_t kLargest = 2048;

template <class A, class T>
struct ForwardScratch {
  using Unit = typename A::Unit;
  Slabs slabs;
  // [slabs][parts] results, where several threads share a slab
  float* results;

  ForwardScratch(const FeedForwardSizes& s, Scratch& shared)
      : slabs(s, 1, kLargest),
        results(shared.take(slabs.parts > 1 ? slabs.total * slabs.parts * result_size() : 0)) {}

  std::int64_t result_size() const {
    return round_up(slabs.positions(), kColumns) * slabs.sizes.channels;
  }

  struct Thread {
    // the slab as tiles of right factors, and a tile of its tokens
    Unit* x;
    typename T::Storage* tokens;
    float* result;
    // before the convolution, [kHidden][positions], with a vector of zeros on either side
    float* hidden;
    std::int32_t* in_map;
    // of a tile: what goes into the second layer
    float* activated;
    Unit *fc1, *fc2;
    std::int64_t stride;

    Thread(const ForwardScratch& shared, Scratch& own) {
      const FeedForwardSizes& s = shared.slabs.sizes;
      const std::int64_t units = units_of<A>(s.channels);
      stride = round_up(shared.slabs.positions(), kColumns) + kLanes;
      x = own.take<Unit>(round_up(shared.slabs.positions(), kColumns) * units);
      tokens = own.take<typename T::Storage>(kColumns * s.channels);
      result = own.take(shared.slabs.parts > 1 ? 0 : shared.result_size());
      hidden = own.take(s.convolved ? kHidden * stride + 2 * kLanes : 0) + kLanes;
      in_map = own.take<std::int32_t>(stride);
      activated = own.take(kHidden * kColumns);
      fc1 = own.take<Unit>(kHidden * units);
      fc2 = own.take<Unit>(s.channels * units_of<A>(kHidden));
    }
  };
};

// What goes into the second layer of a tile of own tokens, to w.activated[rows][kColumns].
template <class Act, class A, class T>
void activate(const FeedForward& f, const Slab& slab, std::int64_t first, std::int64_t rows,
              std::int64_t tile, typename ForwardScratch<A, T>::Thread& w) {
  const Positions own = slab.around(0);
  const std::int64_t begin = own.first(tile), count = own.count(tile);
  const std::int64_t units = units_of<A>(f.sizes.channels);
  if (!f.sizes.convolved) {
    multiply_chains(ByRows<A>{w.fc1, units, units}, rows, w.x + tile * units * kColumns, kColumns,
                    count, w.activated, kColumns);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    float* to = w.activated + row * kColumns;
    if (f.sizes.convolved) {
      float weight[9];
      std::copy_n(static_cast<const float*>(f.conv.weight) + 9 * (first + row), 9, weight);
      const float bias = bias_of(f.conv, first + row);
      const float* at = w.hidden + row * w.stride + begin;
      vectors_abreast(count, [&](std::int64_t c, auto n) {
        Vec x[n];
        for (int i = 0; i < n; ++i)
          x[i] = convolve(at + c + i * kLanes, slab.stride, weight) + bias;
        Act::apply(x);
        for (int i = 0; i < n; ++i) store(to + c + i * kLanes, x[i]);
      });
    } else {
      const float bias = bias_of(f.fc1, first + row);
      vectors_abreast(count, [&](std::int64_t c, auto n) {
        Vec x[n];
        for (int i = 0; i < n; ++i) x[i] = load(to + c + i * kLanes) + bias;
        Act::apply(x);
        for (int i = 0; i < n; ++i) store(to + c + i * kLanes, x[i]);
      });
    }
  }
}

// The result of a slab from its part of the hidden channels, to tiles result[tiles][C][kColumns].
template <class Act, class A, class T>
void forward_slab(const FeedForward& f, const Slab& slab, const Part& hidden, float* result,
                  typename ForwardScratch<A, T>::Thread& w) {
  using Storage = typename T::Storage;
  const FeedForwardSizes& s = f.sizes;
  const std::int64_t C = s.channels;
  const auto *fc1 = static_cast<const Storage*>(f.fc1.weight),
             *fc2 = static_cast<const Storage*>(f.fc2.weight);
  const Positions own = slab.around(0);
  load_tokens<A, T>(slab, slab.around(slab.halo), f.x, C, w.tokens, w.x);
  if (s.convolved) fill_mask(slab, slab.halo, w.stride, w.in_map);
  for (std::int64_t first = hidden.first; first < hidden.first + hidden.count; first += kHidden) {
    const std::int64_t rows = std::min(kHidden, hidden.first + hidden.count - first);
    const std::int64_t depth = units_of<A>(rows);
    copy_rows<A, T>(fc1 + first * C, C, rows, C, w.fc1);
    copy_rows<A, T>(fc2 + first, s.hidden, C, rows, w.fc2);
    if (s.convolved) compute_map<A>(f, slab, w.fc1, first, rows, w.x, w.in_map, w.hidden, w.stride);
    for (std::int64_t tile = 0; tile < own.tiles(); ++tile) {
      const std::int64_t count = own.count(tile);
      activate<Act, A, T>(f, slab, first, rows, tile, w);
      multiply_chains(ByRows<A>{w.fc2, depth, depth}, C,
                      as_units<A>(w.activated, rows, round_up(count, kLanes)), kColumns, count,
                      result + tile * C * kColumns, kColumns, first > hidden.first);
    }
  }
}

template <class Act, class T>
void forward(const FeedForward& f, typename T::Storage* result, void* workspace) {
  using A = typename ArithmeticFor<T>::type;
  const FeedForwardSizes& s = f.sizes;
  Scratch shared_scratch(workspace), size_of_thread(nullptr);
  const ForwardScratch<A, T> shared(s, shared_scratch);
  typename ForwardScratch<A, T>::Thread(shared, size_of_thread);
  const Slabs& slabs = shared.slabs;
#pragma omp parallel num_threads(s.threads)
  {
    Scratch own(workspace, shared_scratch.bytes() + omp_get_thread_num() * size_of_thread.bytes());
    typename ForwardScratch<A, T>::Thread w(shared, own);
    const Registers<A> registers;
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < slabs.total * slabs.parts; ++i) {
      const Slab slab = slabs[i / slabs.parts];
      const Part hidden = hidden_part(s, i % slabs.parts, slabs.parts);
      const bool alone = slabs.parts == 1;
      float* to = alone ? w.result : shared.results + i * shared.result_size();
      forward_slab<Act, A, T>(f, slab, hidden, to, w);
      if (!alone) continue;
      add_parts(s.channels, f.fc2.bias, slab.around(0).tiles(), to, 0, 1);
      store_tokens<T>(slab, to, s.channels, result, w.tokens);
    }
    if (slabs.parts > 1) {
#pragma omp for schedule(static)
      for (std::int64_t i = 0; i < slabs.total; ++i) {
        float* from = shared.results + i * slabs.parts * shared.result_size();
        add_parts(s.channels, f.fc2.bias, slabs[i].around(0).tiles(), from, shared.result_size(),
                  slabs.parts);
        store_tokens<T>(slabs[i], from, s.channels, result, w.tokens);
      }
    }
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t feed_forward_forward_workspace(const FeedForwardSizes& sizes) {
  Scratch shared(nullptr), own(nullptr);
  with_dtype(sizes.dtype, [&](auto type) {
    using T = decltype(type);
    using Parts = ForwardScratch<typename ArithmeticFor<T>::type, T>;
    typename Parts::Thread(Parts(sizes, shared), own);
  });
  return shared.bytes() + own.bytes() * sizes.threads;
}

void feed_forward_forward(const FeedForward& f, void* result, void* workspace) {
  with_dtype(f.sizes.dtype, [&](auto type) {
    using T = decltype(type);
    with_activation(f.sizes.activation, [&](auto activation) {
      forward<decltype(activation), T>(f, static_cast<typename T::Storage*>(result), workspace);
    });
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
