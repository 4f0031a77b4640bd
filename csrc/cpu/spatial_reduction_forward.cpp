// Spatial reduction forward: a tile of patches is gathered from the tokens a few channels at a
// time, multiplied by the weight as it is stored, and normalised while it is in cache. Compiled
// once for each code path.
#include "cpu/patches.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

template <class A, class T>
struct ForwardScratch {
  // shared: the weight, if it isn't units as it is stored
  typename A::Unit* weight;
  std::size_t shared_bytes, thread_bytes;

  ForwardScratch(const SpatialReductionSizes& s, void* base) {
    Scratch shared(base), own(nullptr);
    weight = shared.take<typename A::Unit>(kStoredAsUnits<A, T> ? 0 : s.channels * s.depth());
    shared_bytes = shared.bytes();
    Thread(s, own);
    thread_bytes = own.bytes();
  }

  struct Thread {
    typename A::Unit* patches;
    float *out, *y;
    std::int64_t* offsets;

    Thread(const SpatialReductionSizes& s, Scratch& own)
        : patches(own.take<typename A::Unit>(kLanes * s.sr_ratio * s.sr_ratio * kColumns)),
          out(own.take(s.channels * kColumns)),
          y(own.take(s.channels * kColumns)),
          offsets(own.take<std::int64_t>(kColumns)) {}
  };
};

struct Parameters {
  const void* weight;
  const float *bias, *norm_weight, *norm_bias;
};

// LayerNorm of each column of the convolution's output, in place, and with the parameters in y.
void normalize(const SpatialReductionSizes& s, const Parameters& p, std::int64_t columns,
               float* out, float* y, float* rstd) {
  const auto channels = static_cast<float>(s.channels);
  for (std::int64_t column = 0; column < columns; column += kLanes) {
    Vec total = {}, squares = {};
    for (std::int64_t c = 0; c < s.channels; ++c) total += load(out + c * kColumns + column);
    const Vec mean = total / channels;
    for (std::int64_t c = 0; c < s.channels; ++c) {
      const Vec centered = load(out + c * kColumns + column) - mean;
      squares += centered * centered;
      store(out + c * kColumns + column, centered);
    }
    float scale[kLanes];
    store(scale, squares / channels + s.eps);
    for (float& value : scale) value = 1.0f / std::sqrt(value);
    for (std::int64_t c = 0; c < s.channels; ++c) {
      const Vec normalized = load(out + c * kColumns + column) * load(scale);
      store(out + c * kColumns + column, normalized);
      store(y + c * kColumns + column, normalized * p.norm_weight[c] + p.norm_bias[c]);
    }
    std::copy_n(scale, std::min<std::int64_t>(kLanes, columns - column), rstd + column);
  }
}

template <class A, class T>
void forward(const SpatialReductionSizes& s, const Tokens& x, const Parameters& p, void* y,
             float* normalized, float* rstd, void* workspace) {
  using Unit = typename A::Unit;
  using Storage = typename T::Storage;
  const ForwardScratch<A, T> shared(s, workspace);
  const auto* stored = static_cast<const Storage*>(p.weight);
  const auto* weight = kStoredAsUnits<A, T> ? reinterpret_cast<const Unit*>(stored) : shared.weight;
  const Tiles tiles(1, s.patches(), s.threads);
  const std::int64_t area = s.sr_ratio * s.sr_ratio, step = gathered_channels<A>(s);
#pragma omp parallel num_threads(s.threads)
  {
    const Registers<A> registers;
    Scratch own(workspace, shared.shared_bytes + omp_get_thread_num() * shared.thread_bytes);
    typename ForwardScratch<A, T>::Thread w(s, own);
    if constexpr (!kStoredAsUnits<A, T>) {
#pragma omp for schedule(static)
      for (std::int64_t row = 0; row < s.channels; ++row)
        copy_as_units<A, T>(stored + row * s.depth(), s.depth(), shared.weight + row * s.depth());
    }
#pragma omp for schedule(static)
    for (std::int64_t tile = 0; tile < tiles.total; ++tile) {
      const std::int64_t first = tiles.first(tile), count = tiles.count(tile);
      find_patches(s, x, first, count, w.offsets);
      fill_rows(w.out, s.channels, p.bias);
      for (std::int64_t channel = 0; channel < s.channels; channel += step) {
        const std::int64_t channels = std::min(step, s.channels - channel);
        gather_columns<A, T>(s, x, w.offsets, count, channel, channels, w.patches);
        const ByRows<A> rows{weight + channel * area / A::kValues, s.depth() / A::kValues,
                             channels * area / A::kValues};
        multiply_chains(rows, s.channels, w.patches, kColumns, count, w.out, kColumns, true);
      }
      normalize(s, p, count, w.out, w.y, rstd + first);
      float* to_normalized = normalized + first * s.channels;
      store_columns<F32>(w.out, count, s.channels, 1.0f,
                         [&](auto i) { return to_normalized + i * s.channels; });
      Storage* to_y = static_cast<Storage*>(y) + first * s.channels;
      store_columns<T>(w.y, count, s.channels, 1.0f, [&](auto i) { return to_y + i * s.channels; });
    }
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t spatial_reduction_forward_workspace(const SpatialReductionSizes& sizes) {
  std::size_t bytes = 0;
  with_types(sizes, [&](auto arithmetic, auto type) {
    const ForwardScratch<decltype(arithmetic), decltype(type)> w(sizes, nullptr);
    bytes = w.shared_bytes + w.thread_bytes * sizes.threads;
  });
  return bytes;
}

void spatial_reduction_forward(const SpatialReductionSizes& sizes, Tokens x, const void* weight,
                               const float* bias, const float* norm_weight, const float* norm_bias,
                               void* y, float* normalized, float* rstd, void* workspace) {
  const Parameters p{weight, bias, norm_weight, norm_bias};
  with_types(sizes, [&](auto arithmetic, auto type) {
    forward<decltype(arithmetic), decltype(type)>(sizes, x, p, y, normalized, rstd, workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
