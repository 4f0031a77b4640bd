// What is between the linear layers of a feed-forward network: activations and the depthwise
// convolution.
#pragma once

#include <cstring>

#include "cpu/vec.h"

namespace pvt_kernels::cpu {
namespace {

// Of the standard normal distribution at x.
struct Normal {
  Vec cdf, density;
};

// Phi(-|x|) = exp(-x^2 / 2) * q(u) with u = -|x| / (2 + |x|) and a polynomial q, the minimax fit of
// erfcx, with a relative error of 1.1e-8 and q(0) = 1/2. What is below 1/2 so keeps its relative
// accuracy, where 1 + erf(x / sqrt 2) would cancel.
inline Normal normal(Vec x) {
  // beyond, the exponential is 0 in fp32
  const Vec magnitude = min(broadcast(16.0f), max(x, -x));
  const Vec u = -magnitude / (2.0f + magnitude);
  // -log2(e) / 2
  const Vec power = exp2(magnitude * magnitude * -0.72134752044f);
  Vec q = u * -4.3587240655e-02f - 1.4650767748e-01f;
  constexpr float kRest[] = {-1.7309630389e-01f, -1.1344161250e-01f, -7.4628941674e-02f,
                             2.0413714830e-02f,  9.2492520205e-03f,  -1.3828297893e-01f,
                             2.0212585489e-01f,  7.9788520344e-01f,  0.5f};
#pragma GCC unroll 9
  for (const float coefficient : kRest) q = q * u + coefficient;
  const Vec tail = power * q;
  return {x > 0.0f ? 1.0f - tail : tail, power * 0.398942280401f};
}

struct Gelu {
  static Vec value(Vec x) { return x * normal(x).cdf; }
  // the value, and the gradient of x from that of the value
  static Vec value(Vec x, Vec& gradient) {
    const Normal n = normal(x);
    gradient = gradient * (n.cdf + x * n.density);
    return x * n.cdf;
  }
};

struct Relu {
  // NaN stays NaN
  static Vec value(Vec x) { return max(Vec{}, x); }
  static Vec value(Vec x, Vec& gradient) {
    gradient = x > 0.0f ? gradient : Vec{};
    return value(x);
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
