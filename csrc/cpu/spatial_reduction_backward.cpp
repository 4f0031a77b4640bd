// Spatial reduction backward: LayerNorm, tile by tile of patches; then the gradients of the patches
// and of the weight, chunk by chunk of channels at one position in a patch: each token and each
// part of the weight is written by one thread, and nothing is summed across threads. Compiled once
// for each code path.
#include "cpu/patches.h"
#include "cpu/threads.h"

namespace pvt_kernels::cpu {
namespace {

// Tiles of all patches; their width doesn't depend on the number of threads, nor does a result.
std::int64_t tile_count(const SpatialReductionSizes& s) {
  return (s.patches() + kColumns - 1) / kColumns;
}

template <class A>
struct BackwardScratch {
  using Unit = typename A::Unit;
  // shared: dz of each tile, as left factor over patches and as right factor over channels; each
  // tile's sums over patches, for dbias, dnorm_weight and dnorm_bias; the weight's chunks, and
  // their gradients; where the patches begin in x and in dx
  float *dz, *sums;
  Unit *dz_columns, *chunks;
  float* dchunks;
  std::int64_t *offsets, *dx_offsets;
  std::size_t shared_bytes, thread_bytes;

  BackwardScratch(const SpatialReductionSizes& s, void* base) {
    Scratch shared(base), own(nullptr);
    dz = shared.take(tile_count(s) * s.channels * kColumns);
    sums = shared.take(tile_count(s) * 3 * s.channels);
    dz_columns = shared.take<Unit>(tile_count(s) * units_of<A>(s.channels) * kColumns);
    chunks =
        shared.take<Unit>(chunk_count(s) * padded_units<A>(units_of<A>(s.channels)) * kColumns);
    dchunks = shared.take(chunk_count(s) * s.channels * kColumns);
    for (std::int64_t** table : {&offsets, &dx_offsets})
      *table = shared.take<std::int64_t>(s.patches());
    shared_bytes = shared.bytes();
    Thread(s, own);
    thread_bytes = own.bytes();
  }

  struct Thread {
    // a tile's dy and normalised rows
    float *dy, *normalized;
    // a chunk of a tile of patches, over patches, and its gradient
    Unit* patches;
    float* dpatches;

    Thread(const SpatialReductionSizes& s, Scratch& own)
        : dy(own.take(s.channels * kColumns)),
          normalized(own.take(s.channels * kColumns)),
          patches(own.take<Unit>(units_of<A>(kColumns) * kColumns)),
          dpatches(own.take(kColumns * kColumns)) {}
  };
};

// dz = rstd * (g - mean(g) - normalized * mean(g * normalized)) with g = dy * norm_weight, column
// by column; and the sums over columns. Columns up to a whole vector have dy = normalized = 0.
void layer_norm_tile(const SpatialReductionSizes& s, const float* norm_weight, const float* dy,
                     const float* normalized, const float* rstd, std::int64_t count, float* dz,
                     float* sums) {
  const auto channels = static_cast<float>(s.channels);
  const std::int64_t columns = round_up(count, kLanes);
  for (std::int64_t column = 0; column < columns; column += kLanes) {
    Vec total = {}, projection = {};
    for (std::int64_t c = 0; c < s.channels; ++c) {
      const Vec g = load(dy + c * kColumns + column) * norm_weight[c];
      total += g;
      projection += g * load(normalized + c * kColumns + column);
      store(dz + c * kColumns + column, g);
    }
    const Vec mean = total / channels;
    projection = projection / channels;
    float scale[kLanes] = {};
    std::copy_n(rstd + column, std::min<std::int64_t>(kLanes, count - column), scale);
    for (std::int64_t c = 0; c < s.channels; ++c) {
      float* to = dz + c * kColumns + column;
      store(to, load(scale) *
                    (load(to) - mean - load(normalized + c * kColumns + column) * projection));
    }
  }
  for (std::int64_t c = 0; c < s.channels; ++c) {
    const float *d = dy + c * kColumns, *n = normalized + c * kColumns;
    Vec products = {};
    for (std::int64_t column = 0; column < columns; column += kLanes)
      products += load(d + column) * load(n + column);
    sums[c] = row_sum(dz + c * kColumns, columns);
    sums[s.channels + c] = sum(products);
    sums[2 * s.channels + c] = row_sum(d, columns);
  }
}

struct Gradients {
  void *dx, *dweight;
  float *dbias, *dnorm_weight, *dnorm_bias;
};

template <class A, class T>
void backward(const SpatialReductionSizes& s, const void* dy, const Tokens& x, const void* weight,
              const float* norm_weight, const float* normalized, const float* rstd,
              const Gradients& g, void* workspace) {
  using Unit = typename A::Unit;
  using Storage = typename T::Storage;
  const BackwardScratch<A> shared(s, workspace);
  const auto* dy_rows = static_cast<const Storage*>(dy);
  const Tokens to_dx{g.dx, s.height * s.width * s.channels, s.channels};
  const std::int64_t units = units_of<A>(s.channels);
  const auto first_of = [&](std::int64_t tile) { return tile * kColumns; };
  const auto count_of = [&](std::int64_t tile) {
    return std::min(kColumns, s.patches() - tile * kColumns);
  };
#pragma omp parallel num_threads(s.threads)
  {
    const Registers<A> registers;
    Scratch own(workspace, shared.shared_bytes + omp_get_thread_num() * shared.thread_bytes);
    typename BackwardScratch<A>::Thread w(s, own);
#pragma omp for schedule(static) nowait
    for (std::int64_t unit = 0; unit < units; ++unit)
      weight_to_chunks<A, T>(s, static_cast<const Storage*>(weight), unit, shared.chunks);
#pragma omp for schedule(static)
    for (std::int64_t tile = 0; tile < tile_count(s); ++tile) {
      const std::int64_t first = first_of(tile) * s.channels, count = count_of(tile);
      const std::int64_t columns = round_up(count, kLanes);
      float* dz = shared.dz + tile * s.channels * kColumns;
      find_patches(s, x, first_of(tile), count, shared.offsets + first_of(tile));
      find_patches(s, to_dx, first_of(tile), count, shared.dx_offsets + first_of(tile));
      load_columns<Floats, T>(dy_rows + first, s.channels, count, s.channels, w.dy);
      load_columns<Floats, F32>(normalized + first, s.channels, count, s.channels, w.normalized);
      layer_norm_tile(s, norm_weight, w.dy, w.normalized, rstd + first_of(tile), count, dz,
                      shared.sums + tile * 3 * s.channels);
      // the copies' order: by_rows() overwrites dz
      Unit* to = shared.dz_columns + tile * units * kColumns;
      copy_units<A>(dz, s.channels, columns, to);
      by_rows<A>(dz, s.channels, columns);
    }
#pragma omp for schedule(static) nowait
    for (std::int64_t c = 0; c < s.channels; ++c) {
      for (float* sums : {g.dbias, g.dnorm_weight, g.dnorm_bias}) sums[c] = 0.0f;
      for (std::int64_t tile = 0; tile < tile_count(s); ++tile) {
        const float* sums = shared.sums + tile * 3 * s.channels + c;
        g.dbias[c] += sums[0];
        g.dnorm_weight[c] += sums[s.channels];
        g.dnorm_bias[c] += sums[2 * s.channels];
      }
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < chunk_count(s); ++i) {
      const Chunk c = chunk(s, i);
      Unit* const rows = shared.chunks + i * padded_units<A>(units) * kColumns;
      turn_blocks<A>(rows, units, kColumns);
      const ByColumns<A> weights{rows, kColumns, units};
      float* dweights = shared.dchunks + i * s.channels * kColumns;
      fill_rows(dweights, s.channels, nullptr);
      for (std::int64_t tile = 0; tile < tile_count(s); ++tile) {
        const std::int64_t first = first_of(tile), count = count_of(tile);
        multiply_chains(weights, c.count, shared.dz_columns + tile * units * kColumns, kColumns,
                        count, w.dpatches, kColumns);
        Storage* dx = static_cast<Storage*>(g.dx) + offset_in_patch(s, to_dx, c.r) + c.channel;
        const std::int64_t* to = shared.dx_offsets + first;
        store_columns<T>(w.dpatches, count, c.count, 1.0f, [&](auto i) { return dx + to[i]; });
        gather_rows<A, T>(s, x, c, shared.offsets + first, count, w.patches);
        const auto* dz = reinterpret_cast<const Unit*>(shared.dz + tile * s.channels * kColumns);
        multiply(ByRows<A>{dz, kColumns / A::kValues, units_of<A>(count)}, s.channels, w.patches,
                 kColumns, c.count, Add{dweights, kColumns});
      }
    }
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < s.channels; ++row)
      chunks_to_weight_row<T>(s, shared.dchunks, row, static_cast<Storage*>(g.dweight));
  }
}

}  // namespace

namespace PVT_KERNELS_CODE_PATH {

std::size_t spatial_reduction_backward_workspace(const SpatialReductionSizes& sizes) {
  std::size_t bytes = 0;
  with_dtype(sizes.dtype, [&](auto type) {
    const BackwardScratch<typename ArithmeticFor<decltype(type)>::type> w(sizes, nullptr);
    bytes = w.shared_bytes + w.thread_bytes * sizes.threads;
  });
  return bytes;
}

void spatial_reduction_backward(const SpatialReductionSizes& sizes, const void* dy, Tokens x,
                                const void* weight, const float* norm_weight,
                                const float* normalized, const float* rstd, void* dx, void* dweight,
                                float* dbias, float* dnorm_weight, float* dnorm_bias,
                                void* workspace) {
  const Gradients g{dx, dweight, dbias, dnorm_weight, dnorm_bias};
  with_dtype(sizes.dtype, [&](auto type) {
    using T = decltype(type);
    backward<typename ArithmeticFor<T>::type, T>(sizes, dy, x, weight, norm_weight, normalized,
                                                 rstd, g, workspace);
  });
}

}  // namespace PVT_KERNELS_CODE_PATH
}  // namespace pvt_kernels::cpu
