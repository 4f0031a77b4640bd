// What is between the linear layers of a feed-forward network: activations and the depthwise
// convolution.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/vec.h"

namespace pvt_kernels::cpu {
namespace {

// f(c, n) for the vectors from c on of `count` floats, n of them at a time: as many as kAbreast,
// and the last ones by themselves. What n is is known at compile time. One vector's chain of
// operations is longer than cores look ahead, so it is the chains side by side that keep them busy.
constexpr int kAbreast = 2;

template <class F>
void vectors_abreast(std::int64_t count, F f) {
  std::int64_t c = 0;
  for (; c + (kAbreast - 1) * kLanes < count; c += kAbreast * kLanes)
    f(c, std::integral_constant<int, kAbreast>());
  for (; c < count; c += kLanes) f(c, std::integral_constant<int, 1>());
}

// Of the standard normal distribution at x.
template <int N>
struct Normal {
  Vec cdf[N], density[N];

  // Phi(-|x|) = exp(-x^2 / 2) * q(u) with u = -|x| / (2 + |x|) and a polynomial q, the minimax fit
  // of erfcx, with a relative error of 1.1e-8 and q(0) = 1/2. What is below 1/2 so keeps its
  // relative accuracy, where 1 + erf(x / sqrt 2) would cancel.
  explicit Normal(const Vec (&x)[N]) {
    Vec u[N], power[N], q[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      // beyond, the exponential is 0 in fp32
      const Vec magnitude = min(broadcast(16.0f), max(x[i], -x[i]));
      u[i] = -magnitude / (2.0f + magnitude);
      // -log2(e) / 2
      power[i] = exp2(magnitude * magnitude * -0.72134752044f);
      q[i] = u[i] * -4.3587240655e-02f - 1.4650767748e-01f;
    }
    constexpr float kRest[] = {-1.7309630389e-01f, -1.1344161250e-01f, -7.4628941674e-02f,
                               2.0413714830e-02f,  9.2492520205e-03f,  -1.3828297893e-01f,
                               2.0212585489e-01f,  7.9788520344e-01f,  0.5f};
#pragma GCC unroll 9
    for (const float coefficient : kRest)
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) q[i] = q[i] * u[i] + coefficient;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const Vec tail = power[i] * q[i];
      cdf[i] = x[i] > 0.0f ? 1.0f - tail : tail;
      density[i] = power[i] * 0.398942280401f;
    }
  }
};

struct Gelu {
  template <int N>
  static void apply(Vec (&x)[N]) {
    const Normal<N> n(x);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) x[i] = x[i] * n.cdf[i];
  }
  // the values, and the gradients of x from those of the values
  template <int N>
  static void apply(Vec (&x)[N], Vec (&gradient)[N]) {
    const Normal<N> n(x);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      gradient[i] = gradient[i] * (n.cdf[i] + x[i] * n.density[i]);
      x[i] = x[i] * n.cdf[i];
    }
  }
};

struct Relu {
  // NaN stays NaN
  template <int N>
  static void apply(Vec (&x)[N]) {
    for (Vec& value : x) value = max(Vec{}, value);
  }
  template <int N>
  static void apply(Vec (&x)[N], Vec (&gradient)[N]) {
    for (int i = 0; i < N; ++i) gradient[i] = x[i] > 0.0f ? gradient[i] : Vec{};
    apply(x);
  }
};

// The vector where the mask's bits are set, else 0.
inline Vec masked(Vec x, const std::int32_t* mask) {
  IntVec bits;
  std::memcpy(&bits, mask, sizeof bits);
  return (Vec)((IntVec)x & bits);
}

// 3 x 3 taps around `at`, of rows that are `stride` apart.
inline Vec convolve(const float* at, std::int64_t stride, const float (&weight)[9]) {
  Vec sums[3];
#pragma GCC unroll 3
  for (int row = 0; row < 3; ++row) {
    const float* from = at + (row - 1) * stride;
    const float* w = weight + 3 * row;
    sums[row] = load(from - 1) * w[0] + load(from) * w[1] + load(from + 1) * w[2];
  }
  return sums[0] + sums[1] + sums[2];
}

// A channel's taps in the order of the transposed convolution.
inline void turn_taps(const float* weight, float (&to)[9]) {
  for (int i = 0; i < 9; ++i) to[i] = weight[8 - i];
}

// Each tap's gradient from a vector of the convolution's output gradient.
inline void add_tap_gradients(const float* at, std::int64_t stride, Vec output_gradient,
                              Vec (&sums)[9]) {
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i)
    sums[i] += load(at + (i / 3 - 1) * stride + i % 3 - 1) * output_gradient;
}

}  // namespace
}  // namespace pvt_kernels::cpu
