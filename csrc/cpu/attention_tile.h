// Attention of one tile of queries to the keys of one head: the part that the attention op and the
// whole layer share. A head's keys and values are packed once, for all tiles and threads.
#pragma once

#include <type_traits>

#include "cpu/attention.h"
#include "cpu/overlap.h"
#include "cpu/tiles.h"

namespace pvt_kernels::cpu {
namespace {

// Keys in a block: its scores, 16 KB, stay in L1.
constexpr std::int64_t kKeys = 64;

constexpr float kLog2e = 1.44269504088896340736f;
// What a score is multiplied by beside the scale, and an exponent to be one of base 2. Exponents
// are of base 2 where a product and a difference are one instruction. Elsewhere they are natural,
// as in PyTorch's formula: log2(e) would round each score, which a scale such as 1/2 does not.
#if defined(__FMA__) || defined(__aarch64__)
constexpr float kFactor = kLog2e, kToBase2 = 1;
#else
constexpr float kFactor = 1, kToBase2 = kLog2e;
#endif

// The storage of one head's row of a (B, N, heads, d) tensor.
template <class T>
const typename T::Storage* head_row(const Heads& t, std::int64_t batch, std::int64_t head,
                                    std::int64_t row) {
  return static_cast<const typename T::Storage*>(t.data) + batch * t.batch_stride +
         head * t.head_stride + row * t.token_stride;
}

// K or V of all heads and images as units of neighbouring channels, [keys][channels], or of
// neighbouring keys, [keys / kValues][channels].
template <class A>
struct Packed {
  typename A::Unit* data;
  std::int64_t stride, per_head;

  static Packed by_key(const AttentionSizes& s, Scratch& scratch) {
    const std::int64_t stride =
        A::kValues == 1 ? padded_channels(s.head_dim) : units_of<A>(s.head_dim);
    const std::int64_t per_head = s.keys * stride;
    return {scratch.take<typename A::Unit>(s.batch * s.heads * per_head), stride, per_head};
  }

  static Packed by_channel(const AttentionSizes& s, Scratch& scratch) {
    const std::int64_t stride = padded_channels(s.head_dim);
    const std::int64_t per_head = padded_units<A>(units_of<A>(s.keys)) * stride;
    return {scratch.take<typename A::Unit>(s.batch * s.heads * per_head), stride, per_head};
  }

  // The same, packed by key, also by channel: units of one value already are.
  Packed also_by_channel(const AttentionSizes& s, Scratch& scratch) const {
    return A::kValues == 1 ? *this : by_channel(s, scratch);
  }

  const typename A::Unit* at(std::int64_t batch_head, std::int64_t row) const {
    return data + batch_head * per_head + row * stride;
  }
};

// Keys [first, first + count) of a head; `first` is a multiple of kKeys.
template <class A, class T>
void pack_by_key(const Packed<A>& to, const Heads& from, const AttentionSizes& s,
                 std::int64_t batch_head, std::int64_t first, std::int64_t count) {
  typename A::Unit* rows = to.data + batch_head * to.per_head + first * to.stride;
  for (std::int64_t i = 0; i < count; ++i)
    copy_as_units<A, T>(head_row<T>(from, batch_head / s.heads, batch_head % s.heads, first + i),
                        s.head_dim, rows + i * to.stride);
}

template <class A, class T>
void pack_by_channel(const Packed<A>& to, const Heads& from, const AttentionSizes& s,
                     std::int64_t batch_head, std::int64_t first, std::int64_t count) {
  typename A::Unit* rows = to.data + batch_head * to.per_head + first / A::kValues * to.stride;
  copy_row_units<A, T>(head_row<T>(from, batch_head / s.heads, batch_head % s.heads, first),
                       from.token_stride, count, s.head_dim, rows, to.stride);
  turn_blocks<A>(rows, units_of<A>(count), to.stride);
}

// Calls f(batch_head, first, count) for all blocks of keys, by the threads of the enclosing region.
template <class F>
void for_each_key_block(const AttentionSizes& s, F f) {
  const std::int64_t blocks = (s.keys + kKeys - 1) / kKeys;
#pragma omp for schedule(static)
  for (std::int64_t i = 0; i < s.batch * s.heads * blocks; ++i) {
    const std::int64_t first = i % blocks * kKeys;
    f(i / blocks, first, std::min(kKeys, s.keys - first));
  }
}

// One head's of (B, heads, M), or null.
inline const float* key_biases_of(const float* biases, const AttentionSizes& s,
                                  std::int64_t batch_head) {
  return biases == nullptr ? nullptr : biases + batch_head * s.keys;
}

// scores[keys][kColumns] = K q + bias, over the channels.
template <class A>
void score(const ByRows<A>& k, std::int64_t keys, const float* bias, const typename A::Unit* q,
           std::int64_t columns, float* scores) {
  if (bias != nullptr) fill_rows(scores, keys, bias);
  multiply_chains(k, keys, q, kColumns, columns, scores, kColumns, bias != nullptr);
}

// The same, to be computed a column of tiles at a time.
template <class A>
BiasedColumnProduct<ByRows<A>> scoring(const ByRows<A>& k, std::int64_t keys, const float* bias,
                                       const typename A::Unit* q, float* scores) {
  return {{k, keys, q, kColumns, {scores, kColumns, bias != nullptr}}, bias};
}

template <class A>
struct ForwardTile {
  float *scores, *maximum, *total, *rescale;
  // of the next block of keys, where they are computed beside this one's softmax
  float* next_scores;

  explicit ForwardTile(Scratch& scratch) {
    scores = scratch.take(kKeys * kColumns);
    next_scores = scratch.take(kInTiles<A> ? kKeys * kColumns : 0);
    for (float** row : {&maximum, &total, &rescale}) *row = scratch.take(kColumns);
  }
};

// Calls f(first, count) for keys [begin, end), at most `Most` together, four or two, so that the
// operations of one fill the waits of another's; `count` is a constant, and `first` even, as
// `begin` is.
template <int Most = 4, class F>
void for_each_few_keys(std::int64_t begin, std::int64_t end, F f) {
  std::int64_t key = begin;
  if constexpr (Most == 4)
    for (; key + 4 <= end; key += 4) f(key, std::integral_constant<int, 4>());
  for (; key + 2 <= end; key += 2) f(key, std::integral_constant<int, 2>());
  if (key < end) f(key, std::integral_constant<int, 1>());
}

// Turns scores[keys][kColumns] into units of probabilities relative to each column's running
// maximum, adds them to its total, and sets `rescale` to what earlier results have to be
// multiplied by: the online softmax of Milakov and Gimelshein (2018). `extreme` finds the score
// that the factor makes the highest. `beside` is what tiles compute meanwhile.
template <class A, Vec (*extreme)(Vec, Vec), class Beside>
void softmax(ForwardTile<A>& w, std::int64_t keys, std::int64_t columns, float factor,
             const Beside& beside) {
  auto* p = reinterpret_cast<typename A::Unit*>(w.scores);
  const auto raise_maximum = [&](std::int64_t c) {
    const float* scores = w.scores + c;
    Vec found[4];
    for (Vec& of_some : found) of_some = load(scores);
    for_each_few_keys(0, keys, [&](auto first, auto count) {
      for (int i = 0; i < count; ++i)
        found[i] = extreme(found[i], load(scores + (first + i) * kColumns));
    });
    const Vec earlier = load(w.maximum + c);
    const Vec found_first = extreme(found[0], found[1]), found_last = extreme(found[2], found[3]);
    const Vec highest = max(earlier, extreme(found_first, found_last) * factor);
    store(w.maximum + c, highest);
    store(w.rescale + c, A::exp2((earlier - highest) * kToBase2));
  };
  raise_maximum(0);
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    const float* scores = w.scores + c;
    beside.begin(0, c);
    // ahead of its use, which would have to wait for it
    if (c + kLanes < columns) raise_maximum(c + kLanes);
    const Vec highest = load(w.maximum + c);
    // this block's alone, and of every other key: rounding errors grow with the length of a chain
    Vec totals[2] = {};
    const auto exponentiate = [&](auto first, auto count) {
      // of an odd last key the partner is 0
      Vec probability[count + 1] = {};
      for (int i = 0; i < count; ++i)
        probability[i] =
            A::exp2((load(scores + (first + i) * kColumns) * factor - highest) * kToBase2);
      for (int i = 0; i < count; ++i) {
        totals[i % 2] += probability[i];
        if (i % A::kValues == 0)
          store(p + (first + i) / A::kValues * kColumns + c,
                A::units(probability[i], probability[i + 1]));
      }
    };
    const std::int64_t half = Beside::kParts == 2 ? keys / 8 * 4 : 0;
    if constexpr (Beside::kParts == 2) {
      for_each_few_keys(0, half, exponentiate);
      beside.complete(0, c);
      beside.begin(1, c);
    }
    for_each_few_keys(half, keys, exponentiate);
    beside.complete(Beside::kParts - 1, c);
    store(w.total + c, load(w.total + c) * load(w.rescale + c) + (totals[0] + totals[1]));
  }
}

// out[head_dim][kColumns] = softmax((q K^T + key_bias) * scale) V for the queries
// q[units][kColumns]; their log-sum-exp to lse[count]. `key_bias` may be null.
template <class A>
void attend(const AttentionSizes& s, const Packed<A>& k, const Packed<A>& v, const float* key_bias,
            std::int64_t batch_head, const typename A::Unit* q, std::int64_t count, float* out,
            float* lse, ForwardTile<A>& w) {
  std::fill(w.maximum, w.maximum + kColumns, -std::numeric_limits<float>::infinity());
  std::fill(w.total, w.total + kColumns, 0.0f);
  fill_rows(out, s.head_dim, nullptr);
  const auto keys_at = [&](std::int64_t key) {
    return ByRows<A>{k.at(batch_head, key), k.stride, units_of<A>(s.head_dim)};
  };
  const auto bias_at = [&](std::int64_t key) {
    return key_bias == nullptr ? nullptr : key_bias + key;
  };
  const auto softmax_beside = [&](std::int64_t keys, const auto& beside) {
    if (s.scale < 0)
      softmax<A, min>(w, keys, count, s.scale * kFactor, beside);
    else
      softmax<A, max>(w, keys, count, s.scale * kFactor, beside);
  };
  const RescaleAndAdd finish{out, kColumns, w.rescale};
  if (kInTiles<A>) score(keys_at(0), std::min(kKeys, s.keys), bias_at(0), q, count, w.scores);
  for (std::int64_t key = 0; key < s.keys; key += kKeys) {
    const std::int64_t keys = std::min(kKeys, s.keys - key);
    const auto* p = reinterpret_cast<const typename A::Unit*>(w.scores);
    const ByColumns<A> values{v.at(batch_head, key / A::kValues), v.stride, units_of<A>(keys)};
    if constexpr (kInTiles<A>) {
      // beside the softmax of a column of tiles the next block's scores of it, and the results of
      // the column before, whose probabilities are there
      const std::int64_t next = key + kKeys, next_keys = std::min(kKeys, s.keys - next);
      using Results = ColumnProduct<ByColumns<A>, RescaleAndAdd>;
      const Results results{values, s.head_dim, p, kColumns, finish};
      softmax_beside(
          keys, TwoProducts<BiasedColumnProduct<ByRows<A>>, Results, kLanes>{
                    scoring(keys_at(next), next_keys, bias_at(next), q, w.next_scores), results});
      const std::int64_t last_column = (count - 1) / kLanes * kLanes;
      results.begin(last_column);
      results.complete(last_column);
      std::swap(w.scores, w.next_scores);
    } else {
      score(keys_at(key), keys, bias_at(key), q, count, w.scores);
      softmax_beside(keys, Nothing());
      multiply(values, s.head_dim, p, kColumns, count, finish);
    }
  }
  for (std::int64_t c = 0; c < count; c += kLanes) {
    const Vec inverse = 1.0f / load(w.total + c);
    for (std::int64_t i = 0; i < s.head_dim; ++i)
      store(out + i * kColumns + c, load(out + i * kColumns + c) * inverse);
  }
  // rounded once: what is lost here, all probabilities of the row get wrong in the backward
  for (std::int64_t i = 0; i < count; ++i) {
    const double total = std::log2(static_cast<double>(w.total[i])) / kToBase2;
    lse[i] = static_cast<float>((w.maximum[i] + total) / kFactor);
  }
}

template <class A>
struct BackwardTile {
  using Unit = typename A::Unit;
  // the queries' tile, as right factors over channels and over tokens
  Unit *q, *d_o, *q_rows, *d_o_rows;
  // the lse is one of base 2 where exponents are, in two parts
  float *dq, *lse, *lse_rest, *delta, *total;
  // of a block of keys: S and dP
  float *scores, *d_p;
  // of the next one, where they are computed beside this one's softmax
  float *next_scores, *next_d_p;
  // P and dS as left factors over tokens, and dS as a right factor over keys
  Unit *p_rows, *ds_rows, *ds_units;

  BackwardTile(const AttentionSizes& s, Scratch& scratch) {
    const std::int64_t channels = padded_channels(s.head_dim);
    for (Unit** tile : {&q, &d_o}) *tile = scratch.take<Unit>(units_of<A>(channels) * kColumns);
    for (Unit** rows : {&q_rows, &d_o_rows})
      *rows = scratch.take<Unit>(units_of<A>(kColumns) * channels);
    dq = scratch.take(channels * kColumns);
    for (float** row : {&lse, &lse_rest, &delta, &total}) *row = scratch.take(kColumns);
    for (float** tile : {&scores, &d_p}) *tile = scratch.take(kKeys * kColumns);
    for (float** tile : {&next_scores, &next_d_p})
      *tile = scratch.take(kInTiles<A> ? kKeys * kColumns : 0);
    if constexpr (A::kValues == 1) {
      // in place
      p_rows = scores;
      ds_rows = ds_units = d_p;
    } else {
      for (Unit** units : {&p_rows, &ds_rows, &ds_units})
        *units = scratch.take<Unit>(kKeys * kColumns / A::kValues);
    }
  }
};

// lse[count] to the tile's, up to a whole vector.
template <class A>
void load_lse(const float* lse, std::int64_t count, BackwardTile<A>& w) {
  // of columns without a query, so that no probability comes of the keys' biases
  constexpr float kNone = 1e30f;
  for (std::int64_t i = 0; i < round_up(count, kLanes); ++i) {
    const float exact = i < count ? lse[i] : kNone;
    w.lse[i] = exact * kFactor;
    // for the same reason that the forward rounds it once
    w.lse_rest[i] = std::fma(exact, kFactor, -w.lse[i]);
  }
}

// P = exp(S * scale - lse) and dS = P * (dP - delta) of `Width` vectors of columns, as the factors
// of the products to come; adds each column of P to its total, and each row of dS, a lane for each,
// to dkey_bias[keys][kLanes] if it is not null. `beside` is what tiles compute meanwhile.
template <class A, int Width, class Beside>
void differentiate_softmax(const BackwardTile<A>& w, std::int64_t keys, std::int64_t column,
                           float factor, float* dkey_bias, const Beside& beside) {
  const float *scores = w.scores + column, *d_p = w.d_p + column;
  typename A::Unit *p_rows = w.p_rows + column / A::kValues, *ds_units = w.ds_units + column,
                   *ds_rows = w.ds_rows + column / A::kValues;
  Vec lse[Width], rest[Width], delta[Width], totals[Width][2] = {};
  for (int j = 0; j < Width; ++j) {
    lse[j] = load(w.lse + column + j * kLanes);
    rest[j] = load(w.lse_rest + column + j * kLanes);
    delta[j] = load(w.delta + column + j * kLanes);
  }
  const auto differentiate_keys = [&](auto first, auto count) {
    // of an odd last key or vector the partner is 0
    Vec p[count + 1][A::kValues] = {}, ds[count + 1][A::kValues] = {};
    for (int i = 0; i < count; ++i) {
      for (int j = 0; j < Width; ++j) {
        const std::int64_t at = (first + i) * kColumns + j * kLanes;
        p[i][j] = A::exp2((load(scores + at) * factor - lse[j] - rest[j]) * kToBase2);
        ds[i][j] = p[i][j] * (load(d_p + at) - delta[j]);
        totals[j][i % 2] += p[i][j];
      }
    }
    for (int i = 0; i < count; ++i) {
      const std::int64_t at = (first + i) * (kColumns / A::kValues);
      store(p_rows + at, A::neighbours(p[i][0], p[i][A::kValues - 1]));
      store(ds_rows + at, A::neighbours(ds[i][0], ds[i][A::kValues - 1]));
      for (int j = 0; A::kValues == 2 && i % 2 == 0 && j < Width; ++j)
        store(ds_units + at + j * kLanes, A::units(ds[i][j], ds[i + 1][j]));
    }
    if (dkey_bias == nullptr) return;
    for (int i = 0; i < count; ++i) {
      float* sums = dkey_bias + (first + i) * kLanes;
      store(sums, load(sums) + (Width == 2 ? ds[i][0] + ds[i][Width - 1] : ds[i][0]));
    }
  };
  // as many of the keys beside each part of what the columns' tiles are for
  constexpr int kParts = Beside::kParts, kSteps = kParts * Width;
  std::int64_t begin = 0;
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t of_step = column + step / kParts * kLanes;
    const std::int64_t end = step + 1 == kSteps ? keys : keys * (step + 1) / kSteps / 4 * 4;
    beside.begin(step % kParts, of_step);
    for_each_few_keys<4 / A::kValues>(begin, end, differentiate_keys);
    beside.complete(step % kParts, of_step);
    begin = end;
  }
  for (int j = 0; j < Width; ++j) {
    float* total = w.total + column + j * kLanes;
    store(total, load(total) + (totals[j][0] + totals[j][1]));
  }
}

template <class A, class Beside>
void differentiate_softmax(const BackwardTile<A>& w, std::int64_t keys, std::int64_t columns,
                           float factor, float* dkey_bias, const Beside& beside) {
  // vectors that make one of neighbouring columns' units
  constexpr int kWidth = A::kValues;
  std::int64_t c = 0;
  for (; c + kWidth * kLanes <= columns; c += kWidth * kLanes)
    differentiate_softmax<A, kWidth>(w, keys, c, factor, dkey_bias, beside);
  if (c < columns) differentiate_softmax<A, 1>(w, keys, c, factor, dkey_bias, beside);
}

// The sums over the queries of one head's dk and dv[keys][padded head_dim] and, unless it is null,
// dkey_bias[keys][kLanes], whose lanes are to be added. The first and the last leave out the scale.
struct KeyGradients {
  float *dk, *dv, *dkey_bias;
};

// From w's q, do, lse and delta of a tile: dq[head_dim][kColumns], to be multiplied by the scale;
// adds to the keys' gradients. Columns up to a whole vector have q = do = delta = 0 and the lse of
// none: nothing comes of them.
template <class A>
void differentiate(const AttentionSizes& s, const Packed<A>& k, const Packed<A>& v,
                   const float* key_bias, const Packed<A>& k_by_channel, std::int64_t batch_head,
                   std::int64_t count, const KeyGradients& to, BackwardTile<A>& w) {
  const std::int64_t channels = padded_channels(s.head_dim), d = s.head_dim;
  const std::int64_t columns = round_up(count, kLanes);
  fill_rows(w.dq, d, nullptr);
  std::fill(w.total, w.total + kColumns, 0.0f);
  const auto keys_at = [&](std::int64_t key) {
    return ByRows<A>{k.at(batch_head, key), k.stride, units_of<A>(s.head_dim)};
  };
  const auto values_at = [&](std::int64_t key) {
    return ByRows<A>{v.at(batch_head, key), v.stride, units_of<A>(s.head_dim)};
  };
  const auto bias_at = [&](std::int64_t key) {
    return key_bias == nullptr ? nullptr : key_bias + key;
  };
  for (std::int64_t key = 0; key < s.keys; key += kKeys) {
    const std::int64_t keys = std::min(kKeys, s.keys - key);
    float* const dkey_bias = to.dkey_bias == nullptr ? nullptr : to.dkey_bias + key * kLanes;
    // of tiles only the first block's: the others come from beside the softmax before
    if (!kInTiles<A> || key == 0) {
      score(keys_at(key), keys, bias_at(key), w.q, columns, w.scores);
      multiply_chains(values_at(key), keys, w.d_o, kColumns, columns, w.d_p, kColumns);
    }
    if constexpr (kInTiles<A>) {
      const std::int64_t next = key + kKeys, next_keys = std::min(kKeys, s.keys - next);
      using Scores = BiasedColumnProduct<ByRows<A>>;
      using Gradients = ColumnProduct<ByRows<A>, Write>;
      const TwoProducts<Scores, Gradients, 0> beside{
          scoring(keys_at(next), next_keys, bias_at(next), w.q, w.next_scores),
          {values_at(next), next_keys, w.d_o, kColumns, {w.next_d_p, kColumns}}};
      differentiate_softmax<A>(w, keys, columns, s.scale * kFactor, dkey_bias, beside);
    } else {
      differentiate_softmax<A>(w, keys, columns, s.scale * kFactor, dkey_bias, Nothing());
    }
    multiply(
        ByColumns<A>{k_by_channel.at(batch_head, key / A::kValues), channels, units_of<A>(keys)}, d,
        w.ds_units, kColumns, columns, Add{w.dq, kColumns});
    const auto by_tokens = [&](const typename A::Unit* rows) {
      return ByRows<A>{rows, kColumns / A::kValues, units_of<A>(columns)};
    };
    multiply(by_tokens(w.p_rows), keys, w.d_o_rows, channels, d,
             Add{to.dv + key * channels, channels});
    multiply(by_tokens(w.ds_rows), keys, w.q_rows, channels, d,
             Add{to.dk + key * channels, channels});
    if (kInTiles<A>) {
      std::swap(w.scores, w.next_scores);
      std::swap(w.d_p, w.next_d_p);
    }
  }
  // the total is 1 but for the rounding of lse, which is not to scale all of dq
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    const Vec inverse = 1.0f / load(w.total + c);
    for (std::int64_t i = 0; i < d; ++i)
      store(w.dq + i * kColumns + c, load(w.dq + i * kColumns + c) * inverse);
  }
}

}  // namespace
}  // namespace pvt_kernels::cpu
