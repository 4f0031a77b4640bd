// Feed-forward network backward: a slab of tokens goes through all steps for some hidden channels
// at a time, which are computed again from x and stay in cache until they have become gradients.
// Compiled once for each code path.
#include "cpu/hidden.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

// Of a slab, which has five copies in the tokens' channels.
constexpr std::int64_t kLargest = 1280;

// A worker's sums over its slabs, of its part of the hidden channels: for each channel a row of the
// gradient of fc1's weight and a column of that of fc2's, its taps' gradients, and its biases'.
// What no product sums in short chains is in fp64.
struct Sums {
  static constexpr std::int64_t kVectors = 11, kFc1Bias = 9, kConvBias = 10;
  float *fc1, *fc2;
  double* vectors;

  Sums(std::int64_t hidden, std::int64_t channels, Scratch& own)
      : fc1(own.take(hidden * round_up(channels, kLanes))),
        fc2(own.take(hidden * round_up(channels, kLanes))),
        vectors(own.take<double>(hidden * kVectors)) {}

  void clear(std::int64_t hidden, std::int64_t width) const {
    std::fill(fc1, fc1 + hidden * width, 0.0f);
    std::fill(fc2, fc2 + hidden * width, 0.0f);
    std::fill(vectors, vectors + hidden * kVectors, 0.0);
  }

  Sums from_row(std::int64_t row, std::int64_t width) const {
    Sums rest = *this;
    rest.fc1 += row * width;
    rest.fc2 += row * width;
    rest.vectors += row * kVectors;
    return rest;
  }
};

template <class A, class T>
struct BackwardScratch {
  using Unit = typename A::Unit;
  Slabs slabs;
  // the slabs' groups times the parts of the hidden channels are the workers
  std::int64_t groups;
  // [slabs][parts] gradients of x, where several workers share a slab
  float* dx;
  // where the workers' sums are, and the size of one's
  const void* base;
  std::size_t sums_begin, sums_bytes;

  // `base` is where the shared scratch begins
  BackwardScratch(const FeedForwardSizes& s, const void* base, Scratch& shared)
      : slabs(s, 2, kLargest),
        groups(std::clamp<std::int64_t>(slabs.total, 1, s.threads / slabs.parts)),
        dx(shared.take(slabs.parts > 1 ? slabs.total * slabs.parts * dx_size() : 0)),
        base(base),
        sums_begin(shared.bytes()) {
    Scratch one(nullptr);
    Sums(summed_at_a_time(), s.channels, one);
    sums_bytes = one.bytes();
    shared.take<char>(static_cast<std::int64_t>(sums_bytes) * workers());
  }

  std::int64_t workers() const { return groups * slabs.parts; }
  // Whether a worker is done with hidden channels when it has been through its one slab: then it
  // has sums of a chunk of them alone, which become gradients while they are in cache.
  bool by_chunk() const { return slabs.total == 1; }
  std::int64_t summed_at_a_time() const {
    if (by_chunk()) return kHidden;
    const std::int64_t chunks = (slabs.sizes.hidden + kHidden - 1) / kHidden;
    return (chunks + slabs.parts - 1) / slabs.parts * kHidden;
  }
  std::int64_t dx_size() const {
    return round_up(slabs.positions(), kColumns) * slabs.sizes.channels;
  }
  Sums sums_of(std::int64_t worker) const {
    Scratch own(base, sums_begin + worker * sums_bytes);
    return Sums(summed_at_a_time(), slabs.sizes.channels, own);
  }

  struct Thread {
    // rows of positions, and of channels as a right factor over tokens
    std::int64_t stride, width;
    // the slab's x and gradient of the result as tiles of right factors, over channels and over
    // tokens, and a tile of tokens
    Unit *x, *x_rows, *dresult, *dresult_rows;
    typename T::Storage* tokens;
    float* dx;
    // before the convolution, and the gradient of what comes out of it, [kHidden][positions], with
    // a vector of zeros on either side
    float *hidden, *doutput;
    std::int32_t *in_map, *near, *own;
    // of a tile: what goes into the second layer, or the gradient of what comes out of the first;
    // and the gradient of what goes into the second
    float *values, *gradients;
    Unit* gradient_units;
    Unit *fc1, *fc1_columns, *fc2_columns;

    Thread(const BackwardScratch& shared, Scratch& scratch) {
      const FeedForwardSizes& s = shared.slabs.sizes;
      const std::int64_t units = units_of<A>(s.channels), positions = shared.slabs.positions();
      const std::int64_t tiled = round_up(positions, kColumns);
      stride = tiled + kLanes;
      width = round_up(s.channels, kLanes);
      x = scratch.take<Unit>(tiled * units);
      x_rows = scratch.take<Unit>(units_of<A>(tiled) * width);
      dresult = scratch.take<Unit>(tiled * units);
      dresult_rows = scratch.take<Unit>(units_of<A>(tiled) * width);
      tokens = scratch.take<typename T::Storage>(kColumns * s.channels);
      dx = scratch.take(shared.slabs.parts > 1 ? 0 : shared.dx_size());
      const std::int64_t map = s.convolved ? kHidden * stride + 2 * kLanes : 0;
      hidden = scratch.take(map) + kLanes;
      doutput = scratch.take(map) + kLanes;
      in_map = scratch.take<std::int32_t>(stride);
      near = scratch.take<std::int32_t>(stride);
      own = scratch.take<std::int32_t>(stride);
      values = scratch.take(kHidden * kColumns);
      gradients = scratch.take(kHidden * kColumns);
      gradient_units = scratch.take<Unit>(units_of<A>(kHidden) * kColumns);
      fc1 = scratch.take<Unit>(kHidden * units);
      fc1_columns = scratch.take<Unit>(padded_units<A>(units_of<A>(kHidden)) * width);
      fc2_columns = scratch.take<Unit>(padded_units<A>(units) * kHidden);
    }
  };
};

// Tokens of a range as tiles of right factors over tokens, [tiles][units][width].
template <class A, class T>
void load_token_rows(const Slab& slab, const Positions& range, const Tokens& t,
                     std::int64_t channels, std::int64_t width, typename T::Storage* tokens,
                     typename A::Unit* to) {
  for (std::int64_t tile = 0; tile < range.tiles(); ++tile) {
    gather_tokens<T>(slab, t, channels, range.first(tile), range.count(tile), tokens);
    copy_row_units<A, T>(tokens, channels, range.count(tile), channels,
                         to + tile * units_of<A>(kColumns) * width, width);
  }
}

// Where the gradients of the weights and biases go.
template <class T>
struct Gradients {
  LinearGradient fc1, conv;
  typename T::Storage* fc2;
};

template <class Act, class T>
class Backward {
 public:
  using A = typename ArithmeticFor<T>::type;
  using Unit = typename A::Unit;
  using Storage = typename T::Storage;
  using Scratches = BackwardScratch<A, T>;
  using Thread = typename Scratches::Thread;

  Backward(const FeedForward& f, const Tokens& dresult, const Gradients<T>& to,
           const Scratches& shared)
      : f_(f), s_(f.sizes), dresult_(dresult), to_(to), shared_(shared) {}

  // A worker's sums, and for each of its slabs tiles of dx that `finish` gets.
  template <class Finish>
  void work(std::int64_t worker, Thread& w, Finish finish) const {
    const Slabs& slabs = shared_.slabs;
    const std::int64_t group = worker / slabs.parts, part = worker % slabs.parts;
    const Sums sums = shared_.sums_of(worker);
    const Part hidden = hidden_part(s_, part, slabs.parts);
    if (!shared_.by_chunk()) sums.clear(hidden.count, w.width);
    for (std::int64_t i = slabs.total * group / shared_.groups;
         i < slabs.total * (group + 1) / shared_.groups; ++i) {
      float* dx =
          slabs.parts == 1 ? w.dx : shared_.dx + (i * slabs.parts + part) * shared_.dx_size();
      differentiate_slab(slabs[i], hidden, sums, dx, w);
      finish(slabs[i], dx);
    }
  }

  // The gradients of hidden channel `row` from all groups' sums.
  void finish_row(std::int64_t row, std::int64_t width) const {
    const std::int64_t C = s_.channels;
    auto* weight = static_cast<Storage*>(to_.fc1.weight) + row * C;
    for (std::int64_t c = 0; c < C; c += kLanes) {
      Vec sum = {};
      for_each_group(row,
                     [&](const Sums& sums, auto at) { sum += load(sums.fc1 + at * width + c); });
      float values[kLanes];
      store(values, sum);
      copy_from_floats<T>(values, std::min<std::int64_t>(kLanes, C - c), weight + c);
    }
    double vectors[Sums::kVectors] = {};
    for_each_group(row, [&](const Sums& sums, auto at) {
      for (std::int64_t i = 0; i < Sums::kVectors; ++i)
        vectors[i] += sums.vectors[at * Sums::kVectors + i];
    });
    to_.fc1.bias[row] = static_cast<float>(vectors[Sums::kFc1Bias]);
    if (!s_.convolved) return;
    for (std::int64_t i = 0; i < 9; ++i)
      static_cast<float*>(to_.conv.weight)[9 * row + i] = static_cast<float>(vectors[i]);
    to_.conv.bias[row] = static_cast<float>(vectors[Sums::kConvBias]);
  }

  // Columns [first, first + count) of the gradient of fc2's weight, up to a vector of them.
  void finish_columns(std::int64_t first, std::int64_t count, std::int64_t width) const {
    float block[kLanes * kLanes] = {}, turned[kLanes * kLanes];
    for (std::int64_t c = 0; c < s_.channels; c += kLanes) {
      for (std::int64_t i = 0; i < count; ++i) {
        Vec sum = {};
        for_each_group(first + i,
                       [&](const Sums& sums, auto at) { sum += load(sums.fc2 + at * width + c); });
        store(block + i * kLanes, sum);
      }
      transpose(block, kLanes, turned, kLanes);
      for (std::int64_t i = 0; i < std::min<std::int64_t>(kLanes, s_.channels - c); ++i)
        copy_from_floats<T>(turned + i * kLanes, count, to_.fc2 + (c + i) * s_.hidden + first);
    }
  }

 private:
  // Calls use(sums, row of the sums) for each group, in order.
  template <class Use>
  void for_each_group(std::int64_t row, Use use) const {
    const std::int64_t parts = shared_.slabs.parts;
    std::int64_t part = 0;
    while (row >= hidden_part(s_, part, parts).first + hidden_part(s_, part, parts).count) ++part;
    std::int64_t at = row - hidden_part(s_, part, parts).first;
    if (shared_.by_chunk()) at %= kHidden;
    for (std::int64_t group = 0; group < shared_.groups; ++group)
      use(shared_.sums_of(group * parts + part), at);
  }

  void differentiate_slab(const Slab& slab, const Part& hidden, const Sums& sums, float* dx,
                          Thread& w) const {
    const std::int64_t C = s_.channels;
    const auto *fc1 = static_cast<const Storage*>(f_.fc1.weight),
               *fc2 = static_cast<const Storage*>(f_.fc2.weight);
    const Positions near = slab.around(std::min<std::int64_t>(slab.halo, 1)), own = slab.around(0);
    load_tokens<A, T>(slab, slab.around(slab.halo), f_.x, C, w.tokens, w.x);
    load_tokens<A, T>(slab, near, dresult_, C, w.tokens, w.dresult);
    load_token_rows<A, T>(slab, own, f_.x, C, w.width, w.tokens, w.x_rows);
    load_token_rows<A, T>(slab, near, dresult_, C, w.width, w.tokens, w.dresult_rows);
    if (s_.convolved) {
      fill_mask(slab, slab.halo, w.stride, w.in_map);
      fill_mask(slab, 1, w.stride, w.near);
    }
    fill_mask(slab, 0, w.stride, w.own);
    for (std::int64_t first = hidden.first; first < hidden.first + hidden.count; first += kHidden) {
      const Part chunk{first, std::min(kHidden, hidden.first + hidden.count - first)};
      const std::int64_t row = shared_.by_chunk() ? 0 : first - hidden.first;
      const Sums of_chunk = sums.from_row(row, w.width);
      if (shared_.by_chunk()) of_chunk.clear(chunk.count, w.width);
      copy_rows<A, T>(fc1 + first * C, C, chunk.count, C, w.fc1);
      copy_row_units<A, T>(fc1 + first * C, C, chunk.count, C, w.fc1_columns, w.width);
      turn_blocks<A>(w.fc1_columns, units_of<A>(chunk.count), w.width);
      copy_row_units<A, T>(fc2 + first, s_.hidden, C, chunk.count, w.fc2_columns, kHidden);
      turn_blocks<A>(w.fc2_columns, units_of<A>(C), kHidden);
      if (s_.convolved) {
        compute_map<A>(f_, slab, w.fc1, first, chunk.count, w.x, w.in_map, w.hidden, w.stride);
        clear_around(near, w.doutput, chunk.count, w.stride);
        for (std::int64_t tile = 0; tile < near.tiles(); ++tile)
          differentiate_output(slab, near, tile, chunk, of_chunk, w);
      }
      for (std::int64_t tile = 0; tile < own.tiles(); ++tile) {
        if (s_.convolved)
          differentiate_map(slab, own, tile, chunk, of_chunk, w);
        else
          differentiate_tokens(own, tile, chunk, of_chunk, w);
        differentiate_fc1(own, tile, chunk, of_chunk, first > hidden.first, dx, w);
      }
      if (shared_.by_chunk()) finish_chunk(chunk, w.width);
    }
  }

  void finish_chunk(const Part& chunk, std::int64_t width) const {
    const std::int64_t end = chunk.first + chunk.count;
    for (std::int64_t row = chunk.first; row < end; ++row) finish_row(row, width);
    for (std::int64_t row = chunk.first; row < end; row += kLanes)
      finish_columns(row, std::min<std::int64_t>(kLanes, end - row), width);
  }

  // The gradient of what goes into the second layer, of a tile, to w.gradients.
  void differentiate_fc2(const Positions& range, std::int64_t tile, const Part& chunk,
                         Thread& w) const {
    const std::int64_t units = units_of<A>(s_.channels);
    multiply_chains(ByColumns<A>{w.fc2_columns, kHidden, units}, chunk.count,
                    w.dresult + tile * units * kColumns, kColumns, range.count(tile), w.gradients,
                    kColumns);
  }

  // Adds to the sums of a weight's gradient: w.values, a tile over own tokens, times `rows`.
  void add_products(const Positions& range, std::int64_t tile, std::int64_t count, const Unit* rows,
                    float* sums, Thread& w) const {
    ByRows<A> left = by_rows<A>(w.values, count, round_up(range.count(tile), kLanes));
    left.depth = units_of<A>(range.count(tile));
    multiply_chains(left, count, rows + tile * units_of<A>(kColumns) * w.width, w.width,
                    s_.channels, sums, w.width, true);
  }

  // With a convolution: the gradient of what comes out of it, around own tokens; the sums of fc2's
  // weight, the taps and the convolution's bias.
  void differentiate_output(const Slab& slab, const Positions& near, std::int64_t tile,
                            const Part& chunk, const Sums& sums, Thread& w) const {
    const std::int64_t begin = near.first(tile), count = near.count(tile);
    differentiate_fc2(near, tile, chunk, w);
    for (std::int64_t row = 0; row < chunk.count; ++row) {
      float weight[9];
      std::copy_n(static_cast<const float*>(f_.conv.weight) + 9 * (chunk.first + row), 9, weight);
      const float bias = bias_of(f_.conv, chunk.first + row);
      const float* at = w.hidden + row * w.stride + begin;
      Vec taps[9] = {}, total = {};
      vectors_abreast(count, [&](std::int64_t first, auto n) {
        Vec x[n], gradient[n];
        for (int i = 0; i < n; ++i) {
          const std::int64_t c = first + i * kLanes;
          gradient[i] = load(w.gradients + row * kColumns + c);
          x[i] = convolve(at + c, slab.stride, weight) + bias;
        }
        Act::apply(x, gradient);
        for (int i = 0; i < n; ++i) {
          const std::int64_t c = first + i * kLanes;
          store(w.values + row * kColumns + c, masked(x[i], w.own + begin + c));
          store(w.doutput + row * w.stride + begin + c, masked(gradient[i], w.near + begin + c));
          const Vec own = masked(gradient[i], w.own + begin + c);
          total += own;
          add_tap_gradients(at + c, slab.stride, own, taps);
        }
      });
      double* vectors = sums.vectors + row * Sums::kVectors;
      for (int i = 0; i < 9; ++i) vectors[i] += sum(taps[i]);
      vectors[Sums::kConvBias] += sum(total);
    }
    add_products(near, tile, chunk.count, w.dresult_rows, sums.fc2, w);
  }

  // With a convolution: the gradient of what goes into it, of a tile of own tokens, to w.values.
  void differentiate_map(const Slab& slab, const Positions& own, std::int64_t tile,
                         const Part& chunk, const Sums& sums, Thread& w) const {
    const std::int64_t begin = own.first(tile), count = own.count(tile);
    for (std::int64_t row = 0; row < chunk.count; ++row) {
      float weight[9];
      turn_taps(static_cast<const float*>(f_.conv.weight) + 9 * (chunk.first + row), weight);
      const float* at = w.doutput + row * w.stride + begin;
      const float* before = w.hidden + row * w.stride + begin;
      Vec total = {};
      for (std::int64_t c = 0; c < count; c += kLanes) {
        Vec gradient = masked(convolve(at + c, slab.stride, weight), w.own + begin + c);
        if (s_.relu_before_conv) gradient = load(before + c) > 0.0f ? gradient : Vec{};
        total += gradient;
        store(w.values + row * kColumns + c, gradient);
      }
      sums.vectors[row * Sums::kVectors + Sums::kFc1Bias] += sum(total);
    }
  }

  // Without one: the same, and the sums of fc2's weight.
  void differentiate_tokens(const Positions& own, std::int64_t tile, const Part& chunk,
                            const Sums& sums, Thread& w) const {
    const std::int64_t begin = own.first(tile), count = own.count(tile);
    const std::int64_t units = units_of<A>(s_.channels);
    differentiate_fc2(own, tile, chunk, w);
    multiply_chains(ByRows<A>{w.fc1, units, units}, chunk.count, w.x + tile * units * kColumns,
                    kColumns, count, w.values, kColumns);
    for (std::int64_t row = 0; row < chunk.count; ++row) {
      const float bias = bias_of(f_.fc1, chunk.first + row);
      Vec total = {};
      float *values = w.values + row * kColumns, *gradients = w.gradients + row * kColumns;
      const std::int32_t* own_tokens = w.own + begin;
      vectors_abreast(count, [&](std::int64_t first, auto n) {
        Vec x[n], gradient[n];
        for (int i = 0; i < n; ++i) {
          x[i] = load(values + first + i * kLanes) + bias;
          gradient[i] = load(gradients + first + i * kLanes);
        }
        Act::apply(x, gradient);
        for (int i = 0; i < n; ++i) {
          const std::int64_t c = first + i * kLanes;
          store(values + c, masked(x[i], own_tokens + c));
          gradient[i] = masked(gradient[i], own_tokens + c);
          total += gradient[i];
          store(gradients + c, gradient[i]);
        }
      });
      sums.vectors[row * Sums::kVectors + Sums::kFc1Bias] += sum(total);
    }
    add_products(own, tile, chunk.count, w.dresult_rows, sums.fc2, w);
    std::swap(w.values, w.gradients);
  }

  // From the gradient of what comes out of the first layer, in w.values: dx, and the sums of fc1's
  // weight.
  void differentiate_fc1(const Positions& own, std::int64_t tile, const Part& chunk,
                         const Sums& sums, bool add, float* dx, Thread& w) const {
    const std::int64_t count = own.count(tile), C = s_.channels;
    copy_units<A>(w.values, chunk.count, round_up(count, kLanes), w.gradient_units);
    multiply_chains(ByColumns<A>{w.fc1_columns, w.width, units_of<A>(chunk.count)}, C,
                    w.gradient_units, kColumns, count, dx + tile * C * kColumns, kColumns, add);
    add_products(own, tile, chunk.count, w.x_rows, sums.fc1, w);
  }

  const FeedForward& f_;
  const FeedForwardSizes& s_;
  const Tokens dresult_;
  const Gradients<T> to_;
  const Scratches& shared_;
};

template <class Act, class T>
void backward(const FeedForward& f, const Tokens& dresult, typename T::Storage* dx,
              const Gradients<T>& gradients, void* workspace) {
  using A = typename ArithmeticFor<T>::type;
  using Thread = typename BackwardScratch<A, T>::Thread;
  const FeedForwardSizes& s = f.sizes;
  Scratch shared_scratch(workspace), size_of_thread(nullptr);
  const BackwardScratch<A, T> shared(s, workspace, shared_scratch);
  Thread(shared, size_of_thread);
  const Slabs& slabs = shared.slabs;
  const Backward<Act, T> passes(f, dresult, gradients, shared);
#pragma omp parallel num_threads(s.threads)
  {
    Scratch own(workspace, shared_scratch.bytes() + omp_get_thread_num() * size_of_thread.bytes());
    Thread w(shared, own);
    const Registers<A> registers;
#pragma omp for schedule(static)
    for (std::int64_t worker = 0; worker < shared.workers(); ++worker) {
      passes.work(worker, w, [&](const Slab& slab, const float* tiles) {
        if (slabs.parts == 1) store_tokens<T>(slab, tiles, s.channels, dx, w.tokens);
      });
    }
    if (!shared.by_chunk()) {
#pragma omp for schedule(static) nowait
      for (std::int64_t row = 0; row < s.hidden; ++row) passes.finish_row(row, w.width);
#pragma omp for schedule(static) nowait
      for (std::int64_t row = 0; row < s.hidden; row += kLanes)
        passes.finish_columns(row, std::min<std::int64_t>(kLanes, s.hidden - row), w.width);
    }
    if (slabs.parts > 1) {
#pragma omp for schedule(static)
      for (std::int64_t i = 0; i < slabs.total; ++i) {
        float* tiles = shared.dx + i * slabs.parts * shared.dx_size();
        add_parts(s.channels, nullptr, slabs[i].around(0).tiles(), tiles, shared.dx_size(),
                  slabs.parts);
        store_tokens<T>(slabs[i], tiles, s.channels, dx, w.tokens);
      }
    }
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t feed_forward_backward_workspace(const FeedForwardSizes& sizes) {
  Scratch shared(nullptr), own(nullptr);
  with_dtype(sizes.dtype, [&](auto type) {
    using T = decltype(type);
    using Parts = BackwardScratch<typename ArithmeticFor<T>::type, T>;
    typename Parts::Thread(Parts(sizes, nullptr, shared), own);
  });
  return shared.bytes() + own.bytes() * sizes.threads;
}

void feed_forward_backward(const FeedForward& f, Tokens dresult, void* dx,
                           LinearGradient fc1_gradient, LinearGradient conv_gradient,
                           void* fc2_weight_gradient, void* workspace) {
  with_dtype(f.sizes.dtype, [&](auto type) {
    using T = decltype(type);
    using Storage = typename T::Storage;
    with_activation(f.sizes.activation, [&](auto activation) {
      backward<decltype(activation), T>(
          f, dresult, static_cast<Storage*>(dx),
          {fc1_gradient, conv_gradient, static_cast<Storage*>(fc2_weight_gradient)}, workspace);
    });
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
