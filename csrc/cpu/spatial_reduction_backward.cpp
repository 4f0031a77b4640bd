// Spatial reduction backward, in three passes: LayerNorm over rows; the parameters' gradients,
// each thread owning a part of them, so that nothing is summed across threads; and dx, to which
// each patch writes alone. Compiled once for each code path.
#include "cpu/code_path.h"
#include "cpu/conv_weights.h"
#include "cpu/patches.h"
#include "cpu/threads.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

static_assert(kDepth % kLanes == 0);

inline std::int64_t dz_rows(const SpatialReductionSizes& s) { return round_up(s.patches(), kRows); }

struct BackwardScratch {
  // shared: dz, to a whole register block of rows; the weight's rows as (C_out, R, R, C_in); and
  // the weight's gradient as (R, R, C_in, C_out)
  float *dz, *reordered, *dmatrix;
  // each thread's
  float *chunk, *weights;
  std::size_t shared_bytes, thread_bytes;

  BackwardScratch(const SpatialReductionSizes& s, void* base, int thread) {
    const std::int64_t channels = padded_channels(s.channels);
    Scratch shared(base);
    dz = shared.floats(dz_rows(s) * channels);
    reordered = shared.floats(s.channels * s.reordered_stride());
    dmatrix = shared.floats(s.depth() * channels);
    shared_bytes = shared.bytes();
    thread_bytes = place(s, Scratch(nullptr));
    place(s, Scratch(base, shared_bytes + thread * thread_bytes));
  }

 private:
  std::size_t place(const SpatialReductionSizes& s, Scratch own) {
    chunk = own.floats(kPatches * kDepth);
    weights = own.floats(round_up(kDepth, kRows) * padded_channels(s.channels));
    return own.bytes();
  }
};

struct Gradients {
  void *dx, *dweight;
  float *dbias, *dnorm_weight, *dnorm_bias;
};

// dZ = rstd * (G - mean(G) - Z^ * mean(G * Z^)) with G = dY * gamma, for one row.
template <class T>
void layer_norm_row(std::int64_t channels, const typename T::Storage* dy, const float* norm_weight,
                    const float* normalized, float rstd, float* dz) {
  float sum = 0, projection = 0;
#pragma omp simd reduction(+ : sum, projection)
  for (std::int64_t c = 0; c < channels; ++c) {
    const float g = T::to_float(dy[c]) * norm_weight[c];
    sum += g;
    projection += g * normalized[c];
    dz[c] = g;
  }
  const float mean = sum / static_cast<float>(channels);
  projection /= static_cast<float>(channels);
  for (std::int64_t c = 0; c < channels; ++c)
    dz[c] = rstd * (dz[c] - mean - normalized[c] * projection);
  std::fill(dz + channels, dz + padded_channels(channels), 0.0f);
}

// The sums over all rows, for channels [begin, end).
template <class T>
void sum_rows(const SpatialReductionSizes& s, const typename T::Storage* dy,
              const float* normalized, const float* dz, std::int64_t begin, std::int64_t end,
              const Gradients& g) {
  for (float* sums : {g.dbias, g.dnorm_weight, g.dnorm_bias})
    std::fill(sums + begin, sums + end, 0.0f);
  for (std::int64_t row = 0; row < s.patches(); ++row) {
    for (std::int64_t c = begin; c < end; ++c) {
      const float d = T::to_float(dy[row * s.channels + c]);
      g.dbias[c] += dz[row * padded_channels(s.channels) + c];
      g.dnorm_weight[c] += d * normalized[row * s.channels + c];
      g.dnorm_bias[c] += d;
    }
  }
}

// The rows of dmatrix that belong to one chunk: X^T dZ over all patches.
template <class T>
void weights_of_chunk(const SpatialReductionSizes& s, const Tokens& x, const Chunk& c,
                      BackwardScratch& w) {
  const std::int64_t channels = padded_channels(s.channels);
  std::fill(w.weights, w.weights + round_up(kDepth, kRows) * channels, 0.0f);
  for (std::int64_t first = 0; first < s.patches(); first += kPatches) {
    const std::int64_t count = std::min<std::int64_t>(kPatches, s.patches() - first);
    gather<T>(s, x, first, count, count, c, w.chunk);
    std::int64_t row = 0;
    for (; row + kRows <= c.count; row += kRows)
      accumulate<kRows>({w.chunk + row, 1, kDepth, count}, w.dz + first * channels, channels,
                        w.weights + row * channels, channels, channels);
    for (; row < c.count; ++row)
      accumulate<1>({w.chunk + row, 1, kDepth, count}, w.dz + first * channels, channels,
                    w.weights + row * channels, channels, channels);
  }
  std::copy(w.weights, w.weights + c.count * channels, w.dmatrix + depth_of(s, c) * channels);
}

// dX of `count` patches: dZ times the weight's rows, chunk by chunk.
template <class T>
void inputs_of_block(const SpatialReductionSizes& s, std::int64_t first, std::int64_t count,
                     BackwardScratch& w, void* dx) {
  const std::int64_t channels = padded_channels(s.channels), stride = s.reordered_stride();
  for (std::int64_t i = 0; i < s.sr_ratio * chunks_per_row(s); ++i) {
    const Chunk c = chunk(s, i);
    std::fill(w.chunk, w.chunk + kPatches * kDepth, 0.0f);
    // to a whole vector: what lies beyond the chunk is multiplied too, and left
    const std::int64_t width = round_up(c.count, kLanes);
    for (std::int64_t row = 0; row < count; row += kRows)
      accumulate<kRows>({w.dz + (first + row) * channels, channels, 1, s.channels},
                        w.reordered + depth_of(s, c), stride, w.chunk + row * kDepth, kDepth,
                        width);
    scatter<T>(s, w.chunk, first, count, c, dx);
  }
}

template <class T>
void backward(const SpatialReductionSizes& s, const void* dy, const Tokens& x, const void* weight,
              const float* norm_weight, const float* normalized, const float* rstd,
              const Gradients& g, void* workspace) {
  using Storage = typename T::Storage;
  const auto* dy_rows = static_cast<const Storage*>(dy);
  const std::int64_t channels = padded_channels(s.channels), size = patches_per_block(s);
  const std::int64_t chunks = s.sr_ratio * chunks_per_row(s);
#pragma omp parallel num_threads(s.threads)
  {
    BackwardScratch w(s, workspace, omp_get_thread_num());
#pragma omp for schedule(static) nowait
    for (std::int64_t c = 0; c < s.channels; ++c)
      weight_to_patch_order<T>(s, static_cast<const Storage*>(weight), c,
                               w.reordered + c * s.reordered_stride());
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < dz_rows(s); ++row) {
      if (row < s.patches())
        layer_norm_row<T>(s.channels, dy_rows + row * s.channels, norm_weight,
                          normalized + row * s.channels, rstd[row], w.dz + row * channels);
      else
        std::fill(w.dz + row * channels, w.dz + (row + 1) * channels, 0.0f);
    }
#pragma omp for schedule(static) nowait
    for (std::int64_t begin = 0; begin < s.channels; begin += kLanes)
      sum_rows<T>(s, dy_rows, normalized, w.dz, begin, std::min(begin + kLanes, s.channels), g);
#pragma omp for schedule(static) nowait
    for (std::int64_t first = 0; first < s.patches(); first += size)
      inputs_of_block<T>(s, first, std::min(size, s.patches() - first), w, g.dx);
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < chunks; ++i) weights_of_chunk<T>(s, x, chunk(s, i), w);
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < s.depth(); k += kLanes)
      matrix_to_weight<T>(s, w.dmatrix, k, static_cast<Storage*>(g.dweight));
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t spatial_reduction_backward_workspace(const SpatialReductionSizes& sizes) {
  const BackwardScratch w(sizes, nullptr, 0);
  return w.shared_bytes + w.thread_bytes * sizes.threads;
}

void spatial_reduction_backward(const SpatialReductionSizes& sizes, const void* dy, Tokens x,
                                const void* weight, const float* norm_weight,
                                const float* normalized, const float* rstd, void* dx, void* dweight,
                                float* dbias, float* dnorm_weight, float* dnorm_bias,
                                void* workspace) {
  const Gradients g{dx, dweight, dbias, dnorm_weight, dnorm_bias};
  with_dtype(sizes.dtype, [&](auto type) {
    backward<decltype(type)>(sizes, dy, x, weight, norm_weight, normalized, rstd, g, workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
