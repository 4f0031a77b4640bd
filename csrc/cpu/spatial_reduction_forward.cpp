// Spatial reduction forward: a block of patches is gathered from the tokens chunk by chunk,
// multiplied by the weights, and normalised while its rows are in cache. Compiled once for each
// code path.
#include "cpu/code_path.h"
#include "cpu/conv_weights.h"
#include "cpu/patches.h"
#include "cpu/threads.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

struct ForwardScratch {
  // shared: the weight as (R, R, C_in, C_out)
  float* matrix;
  // each thread's
  float *chunk, *rows;
  std::size_t shared_bytes, thread_bytes;

  ForwardScratch(const SpatialReductionSizes& s, void* base, int thread) {
    Scratch shared(base);
    matrix = shared.floats(s.depth() * padded_channels(s.channels));
    shared_bytes = shared.bytes();
    thread_bytes = place(s, Scratch(nullptr));
    place(s, Scratch(base, shared_bytes + thread * thread_bytes));
  }

 private:
  std::size_t place(const SpatialReductionSizes& s, Scratch own) {
    chunk = own.floats(kPatches * kDepth);
    rows = own.floats(kPatches * padded_channels(s.channels));
    return own.bytes();
  }
};

struct Parameters {
  const void* weight;
  const float *bias, *norm_weight, *norm_bias;
};

// LayerNorm of one row of the convolution's output; returns rstd.
float normalize(const SpatialReductionSizes& s, const float* bias, const float* row,
                float* normalized) {
  const auto channels = static_cast<float>(s.channels);
  float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t c = 0; c < s.channels; ++c) {
    normalized[c] = row[c] + bias[c];
    total += normalized[c];
  }
  const float mean = total / channels;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t c = 0; c < s.channels; ++c) {
    normalized[c] -= mean;
    squares += normalized[c] * normalized[c];
  }
  const float rstd = 1.0f / std::sqrt(squares / channels + s.eps);
  for (std::int64_t c = 0; c < s.channels; ++c) normalized[c] *= rstd;
  return rstd;
}

// The convolution of `count` patches, into w.rows.
template <class T>
void convolve(const SpatialReductionSizes& s, const Tokens& x, std::int64_t first,
              std::int64_t count, ForwardScratch& w) {
  const std::int64_t channels = padded_channels(s.channels), rows = round_up(count, kRows);
  std::fill(w.rows, w.rows + rows * channels, 0.0f);
  for (std::int64_t i = 0; i < s.sr_ratio * chunks_per_row(s); ++i) {
    const Chunk c = chunk(s, i);
    gather<T>(s, x, first, count, rows, c, w.chunk);
    const float* weights = w.matrix + depth_of(s, c) * channels;
    // tiles of output channels outside, so that each tile of the weights is read once
    for (std::int64_t tile = 0; tile < channels; tile += kTile) {
      const std::int64_t width = std::min<std::int64_t>(kTile, channels - tile);
      for (std::int64_t row = 0; row < rows; row += kRows)
        accumulate<kRows>({w.chunk + row * kDepth, kDepth, 1, c.count}, weights + tile, channels,
                          w.rows + row * channels + tile, channels, width);
    }
  }
}

template <class T>
void forward(const SpatialReductionSizes& s, const Tokens& x, const Parameters& p, void* y,
             float* normalized, float* rstd, void* workspace) {
  const auto* weight = static_cast<const typename T::Storage*>(p.weight);
  auto* out = static_cast<typename T::Storage*>(y);
  const std::int64_t size = patches_per_block(s);
#pragma omp parallel num_threads(s.threads)
  {
    ForwardScratch w(s, workspace, omp_get_thread_num());
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < s.depth(); k += kLanes)
      weight_to_matrix<T>(s, weight, k, w.matrix);
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < s.patches(); first += size) {
      const std::int64_t count = std::min(size, s.patches() - first);
      convolve<T>(s, x, first, count, w);
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t begin = (first + i) * s.channels;
        float* row = normalized + begin;
        rstd[first + i] = normalize(s, p.bias, w.rows + i * padded_channels(s.channels), row);
        for (std::int64_t c = 0; c < s.channels; ++c)
          out[begin + c] = T::from_float(row[c] * p.norm_weight[c] + p.norm_bias[c]);
      }
    }
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t spatial_reduction_forward_workspace(const SpatialReductionSizes& sizes) {
  const ForwardScratch w(sizes, nullptr, 0);
  return w.shared_bytes + w.thread_bytes * sizes.threads;
}

void spatial_reduction_forward(const SpatialReductionSizes& sizes, Tokens x, const void* weight,
                               const float* bias, const float* norm_weight, const float* norm_bias,
                               void* y, float* normalized, float* rstd, void* workspace) {
  const Parameters p{weight, bias, norm_weight, norm_bias};
  with_dtype(sizes.dtype, [&](auto type) {
    forward<decltype(type)>(sizes, x, p, y, normalized, rstd, workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
