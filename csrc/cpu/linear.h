// Linear layers of tiles of tokens, and their gradients.
#pragma once

#include "cpu/multi_head_attention.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

template <class T>
const typename T::Storage* token_row(const Tokens& t, std::int64_t batch, std::int64_t token) {
  return static_cast<const typename T::Storage*>(t.data) + batch * t.batch_stride +
         token * t.token_stride;
}

// Whether there is not even a whole tile of tokens for each thread.
inline bool few_tokens(const AttentionSizes& s) {
  return s.batch * ((s.queries + kLanes - 1) / kLanes) < s.threads * (kColumns / kLanes);
}

// A weight (out_features, in_features) as a left factor over what comes in: itself, if its rows are
// units as they are stored, else a copy in fp32.
template <class A, class T>
class RowWeight {
 public:
  using Unit = typename A::Unit;

  RowWeight(const void* weight, std::int64_t out_features, std::int64_t in_features,
            Scratch& shared)
      : weight_(static_cast<const typename T::Storage*>(weight)),
        out_features_(out_features),
        in_features_(in_features) {
    if constexpr (!kStoredAsUnits<A, T>) copy_ = shared.take<Unit>(out_features * in_features);
  }

  // By the threads of the enclosing region.
  void prepare() const {
    if constexpr (!kStoredAsUnits<A, T>) {
#pragma omp for schedule(static) nowait
      for (std::int64_t row = 0; row < out_features_; ++row)
        copy_as_units<A, T>(weight_ + row * in_features_, in_features_, copy_ + row * in_features_);
    }
  }

  ByRows<A> from_row(std::int64_t row) const {
    const std::int64_t depth = in_features_ / A::kValues;
    if constexpr (kStoredAsUnits<A, T>)
      return {reinterpret_cast<const Unit*>(weight_) + row * depth, depth, depth};
    else
      return {copy_ + row * depth, depth, depth};
  }

 private:
  const typename T::Storage* weight_;
  std::int64_t out_features_, in_features_;
  Unit* copy_ = nullptr;
};

// A weight (out_features, in_features) as a left factor over what comes out, for the gradient of
// what came in: itself, if it is stored in fp32, else a copy as units of neighbouring rows, in
// strips of `width` columns.
template <class A, class T>
class ColumnWeight {
 public:
  using Unit = typename A::Unit;
  static constexpr bool kInPlace = A::kValues == 1 && kStoredAsUnits<A, T>;

  ColumnWeight(const void* weight, std::int64_t out_features, std::int64_t in_features,
               std::int64_t width, Scratch& shared)
      : weight_(static_cast<const typename T::Storage*>(weight)),
        out_features_(out_features),
        in_features_(in_features),
        width_(width) {
    if constexpr (!kInPlace) copy_ = shared.take<Unit>(strips() * units() * stride());
  }

  std::int64_t strips() const { return (in_features_ + width_ - 1) / width_; }
  std::int64_t first_column(std::int64_t strip) const { return strip * width_; }
  std::int64_t columns(std::int64_t strip) const {
    return std::min(width_, in_features_ - strip * width_);
  }

  // By the threads of the enclosing region.
  void prepare() const {
    if constexpr (!kInPlace) {
#pragma omp for schedule(static) nowait
      for (std::int64_t i = 0; i < strips() * units(); i += kPrepared) {
        const std::int64_t strip = i / units(), row = i % units() * A::kValues;
        const std::int64_t rows =
            std::min<std::int64_t>(kPrepared * A::kValues, out_features_ - row);
        copy_row_units<A, T>(weight_ + row * in_features_ + strip * width_, in_features_, rows,
                             columns(strip), copy_ + i * stride(), stride());
        turn_blocks<A>(copy_ + i * stride(), units_of<A>(rows), stride());
      }
    }
  }

  ByColumns<A> strip(std::int64_t index) const {
    if constexpr (kInPlace)
      return {weight_ + index * width_, in_features_, out_features_};
    else
      return {copy_ + index * units() * stride(), stride(), units_of<A>(out_features_)};
  }

 private:
  // of the copy, what a thread takes at a time
  static constexpr std::int64_t kPrepared = kInTiles<A> ? kTileSize : 1;

  std::int64_t units() const { return padded_units<A>(units_of<A>(out_features_)); }
  std::int64_t stride() const { return round_up(width_, kLanes); }

  const typename T::Storage* weight_;
  std::int64_t out_features_, in_features_, width_;
  Unit* copy_ = nullptr;
};

// Rows [row, row + rows) of weight * x + bias, for a tile of tokens x, to
// result[rows][kColumns].
template <class A, class T>
void project(const RowWeight<A, T>& weight, const float* bias, std::int64_t row, std::int64_t rows,
             const typename A::Unit* x, std::int64_t count, float* result) {
  fill_rows(result, rows, bias == nullptr ? nullptr : bias + row);
  multiply_chains(weight.from_row(row), rows, x, kColumns, count, result, kColumns, true);
}

// One thread's part of a weight's gradient: some of its rows, over all tokens, so that nothing is
// added across threads. That each thread reads all of x costs little beside the products.
template <class A>
struct WeightGradient {
  using Unit = typename A::Unit;
  // Tokens whose gradients are kept while the columns of the weight pass: a strip of sums stays in
  // cache for so long.
  static constexpr std::int64_t kTiles = 4;

  std::int64_t in_features, rows;
  // [strips][rows][kColumns]
  float* sums;
  // the bias's, in fp64: no product breaks the chain of as many sums as there are tiles
  double* bias_sums;
  // kTiles tiles of the output's gradient, [rows][kColumns] each, and a strip of a tile of the
  // input as a right factor over tokens
  float* output_gradient;
  Unit* input;

  WeightGradient(std::int64_t out_features, std::int64_t in_features, int threads, Scratch& own)
      : in_features(in_features), rows(round_up((out_features + threads - 1) / threads, kRows)) {
    sums = own.take(round_up(in_features, kColumns) * rows);
    bias_sums = own.take<double>(rows);
    output_gradient = own.take(kTiles * rows * kColumns);
    input = own.take<Unit>(units_of<A>(kColumns) * kColumns);
  }
};

// The gradients of a layer's weight and bias, for the rows that are this thread's, from `batch`
// times `tokens` tokens.
template <class A, class T>
void linear_gradient(const WeightGradient<A>& w, int thread, std::int64_t out_features,
                     std::int64_t batch, std::int64_t tokens, const Tokens& input,
                     const Tokens& output_gradient, const LinearGradient& to) {
  using Storage = typename T::Storage;
  const std::int64_t begin = std::min(thread * w.rows, out_features);
  const std::int64_t rows = std::min(w.rows, out_features - begin), in_features = w.in_features;
  const std::int64_t per_image = (tokens + kColumns - 1) / kColumns, tiles = batch * per_image;
  const auto first_of = [&](std::int64_t tile) { return tile % per_image * kColumns; };
  const auto count_of = [&](std::int64_t tile) {
    return std::min(kColumns, tokens - first_of(tile));
  };
  if (rows <= 0) return;
  auto* weight = static_cast<Storage*>(to.weight) + begin * in_features;
  // sums of whole vectors in fp32, of a single group: the weight's gradient is the place for them
  const bool in_place = std::is_same_v<T, F32> && tiles <= w.kTiles && in_features % kLanes == 0;
  if (tiles == 0) std::fill(weight, weight + rows * in_features, Storage{});
  std::fill(w.bias_sums, w.bias_sums + rows, 0.0);
  for (std::int64_t group = 0; group < tiles; group += w.kTiles) {
    const std::int64_t end = std::min(group + w.kTiles, tiles);
    ByRows<A> left[WeightGradient<A>::kTiles];
    for (std::int64_t tile = group; tile < end; ++tile) {
      const std::int64_t count = count_of(tile), columns = round_up(count, kLanes);
      float* gradients = w.output_gradient + (tile - group) * rows * kColumns;
      load_columns<Floats, T>(
          token_row<T>(output_gradient, tile / per_image, first_of(tile)) + begin,
          output_gradient.token_stride, count, rows, gradients);
      for (std::int64_t row = 0; row < rows; ++row)
        w.bias_sums[row] += row_sum(gradients + row * kColumns, columns);
      left[tile - group] = by_rows<A>(gradients, rows, columns);
      left[tile - group].depth = units_of<A>(count);
    }
    for (std::int64_t first = 0; first < in_features; first += kColumns) {
      const std::int64_t width = std::min(kColumns, in_features - first);
      // of a single group each strip is done before the next one begins
      float* sums = w.sums + (tiles <= w.kTiles ? 0 : first * rows);
      std::int64_t sums_stride = kColumns;
      if constexpr (std::is_same_v<T, F32>) {
        if (in_place) {
          sums = weight + first;
          sums_stride = in_features;
        }
      }
      for (std::int64_t tile = group; tile < end; ++tile) {
        copy_row_units<A, T>(token_row<T>(input, tile / per_image, first_of(tile)) + first,
                             input.token_stride, count_of(tile), width, w.input, kColumns);
        multiply_chains(left[tile - group], rows, w.input, kColumns, width, sums, sums_stride,
                        tile > 0);
      }
      if (end < tiles || in_place) continue;
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t c = 0; c < width; c += kLanes)
          copy_from_floats<T>(sums + row * kColumns + c, std::min<std::int64_t>(kLanes, width - c),
                              weight + row * in_features + first + c);
      }
    }
  }
  std::copy(w.bias_sums, w.bias_sums + rows, to.bias + begin);
}

}  // namespace
}  // namespace pvt_kernels::cpu
