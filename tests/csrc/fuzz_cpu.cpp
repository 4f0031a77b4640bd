// Runs the CPU kernels on random shapes, on every code path of this CPU, with every buffer of
// exactly its size, so that the sanitizers see a read or write beyond one. The results themselves
// are checked roughly against double precision; the exact bars are in the Python tests.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"

namespace {

using namespace pvt_kernels::cpu;
using Floats = std::vector<float>;

std::mt19937 generator(1);

std::int64_t draw(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}

Floats random(std::int64_t count) {
  Floats values(count);
  for (float& x : values) x = std::normal_distribution<float>()(generator);
  return values;
}

// What a kernel reads or writes in the dtype.
class Tensor {
 public:
  Tensor(DType dtype, Floats values) : values(std::move(values)) {
    if (dtype == DType::f32) return;
    for (float& x : this->values) {
      std::uint32_t bits;
      std::memcpy(&bits, &x, sizeof bits);
      bf16_.push_back(static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16));
    }
    read();
  }
  Tensor(DType dtype, std::size_t size) : Tensor(dtype, Floats(size)) {}

  void* data() { return bf16_.empty() ? static_cast<void*>(values.data()) : bf16_.data(); }
  const void* at(std::int64_t i) {
    return bf16_.empty() ? static_cast<void*>(values.data() + i) : bf16_.data() + i;
  }

  // What a kernel wrote.
  const Floats& read() {
    for (std::size_t i = 0; i < bf16_.size(); ++i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(bf16_[i]) << 16;
      std::memcpy(&values[i], &bits, sizeof bits);
    }
    return values;
  }

  float operator[](std::size_t i) const { return values[i]; }
  std::size_t size() const { return values.size(); }

  Floats values;

 private:
  std::vector<std::uint16_t> bf16_;
};

DType draw_dtype() { return draw(0, 1) == 0 ? DType::f32 : DType::bf16; }

// Of all values together, as large as can be.
double accepted_error(DType dtype) { return dtype == DType::f32 ? 1e-4 : 5e-2; }

// What was written to all of them, one after another.
Floats joined(std::vector<Tensor>& tensors) {
  Floats all;
  for (Tensor& tensor : tensors) {
    const Floats& values = tensor.read();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

// Exactly as large as asked for, aligned as the kernels want it, and full of NaN.
struct Workspace {
  explicit Workspace(std::size_t bytes)
      : memory(std::aligned_alloc(64, std::max<std::size_t>(bytes, 64)), std::free) {
    std::fill_n(static_cast<unsigned char*>(memory.get()), bytes, 0xff);
  }
  std::unique_ptr<void, decltype(&std::free)> memory;
};

void require_close(const char* name, DType dtype, const Floats& actual,
                   const std::vector<double>& expected) {
  double error = 0, size = 1e-6;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    error += std::pow(actual[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  if (std::sqrt(error / size) < accepted_error(dtype)) return;
  std::fprintf(stderr, "%s: relative error %.1e\n", name, std::sqrt(error / size));
  std::exit(1);
}

void fuzz_attention() {
  const std::int64_t B = draw(0, 2), N = draw(1, 130), M = draw(1, 150), heads = draw(1, 3);
  const std::int64_t d = 8 * draw(1, 12);
  const DType dtype = draw_dtype();
  const AttentionSizes s{B, N, M, heads, d, dtype, 0.3f, static_cast<int>(draw(1, 5))};
  Tensor q(dtype, random(B * N * heads * d)), d_o(dtype, random(q.size()));
  // k and v as halves of one projection
  Tensor kv(dtype, random(B * M * 2 * heads * d));
  const auto of_queries = [&](Tensor& t) { return Heads{t.data(), N * heads * d, heads * d, d}; };
  const Heads k{kv.at(0), 2 * M * heads * d, 2 * heads * d, d};
  const Heads v{kv.at(heads * d), 2 * M * heads * d, 2 * heads * d, d};
  const bool biased = draw(0, 1) == 1;
  const Floats key_bias = random(B * heads * M), result_bias = random(heads * d);
  const Biases biases{biased ? key_bias.data() : nullptr, biased ? result_bias.data() : nullptr};
  Tensor o(dtype, q.size()), result(dtype, q.size());
  Tensor dq(dtype, q.size()), dk(dtype, B * M * heads * d), dv(dtype, dk.size());
  Floats lse(B * heads * N), dkey_bias(key_bias.size());
  const CodePath& kernels = code_path(s.dtype);
  const Workspace forward(kernels.attention_forward_workspace(s));
  kernels.attention_forward(s, of_queries(q), k, v, biases, o.data(),
                            biased ? result.data() : nullptr, lse.data(), forward.memory.get());
  const Workspace backward(kernels.attention_backward_workspace(s));
  kernels.attention_backward(s, of_queries(d_o), of_queries(q), k, v, biases.keys, of_queries(o),
                             lse.data(), dq.data(), dk.data(), dv.data(),
                             biased ? dkey_bias.data() : nullptr, backward.memory.get());

  std::vector<double> out(q.size()), grad_q(q.size()), grad_k(dk.size()), grad_v(dk.size());
  std::vector<double> biased_out(q.size()), grad_key_bias(key_bias.size());
  for (std::int64_t batch_head = 0; batch_head < B * heads; ++batch_head) {
    const std::int64_t b = batch_head / heads, h = batch_head % heads;
    const auto key = [&](std::int64_t j, std::int64_t c) {
      return static_cast<double>(kv[((b * M + j) * 2 * heads + h) * d + c]);
    };
    const auto value = [&](std::int64_t j, std::int64_t c) {
      return static_cast<double>(kv[((b * M + j) * 2 * heads + heads + h) * d + c]);
    };
    for (std::int64_t i = 0; i < N; ++i) {
      const std::int64_t row = ((b * N + i) * heads + h) * d;
      std::vector<double> p(M), dp(M);
      double highest = -1e300, total = 0, delta = 0;
      for (std::int64_t j = 0; j < M; ++j) {
        for (std::int64_t c = 0; c < d; ++c)
          p[j] += static_cast<double>(s.scale) * q[row + c] * key(j, c);
        if (biased) p[j] += static_cast<double>(s.scale) * key_bias[batch_head * M + j];
        highest = std::max(highest, p[j]);
      }
      for (double& x : p) total += x = std::exp(x - highest);
      for (std::int64_t j = 0; j < M; ++j) {
        p[j] /= total;
        for (std::int64_t c = 0; c < d; ++c) {
          out[row + c] += p[j] * value(j, c);
          dp[j] += d_o[row + c] * value(j, c);
        }
        delta += p[j] * dp[j];
      }
      for (std::int64_t c = 0; c < d; ++c)
        biased_out[row + c] = out[row + c] + result_bias[h * d + c];
      for (std::int64_t j = 0; j < M; ++j) {
        const double ds = p[j] * (dp[j] - delta) * s.scale;
        const std::int64_t key_row = ((b * M + j) * heads + h) * d;
        grad_key_bias[batch_head * M + j] += ds;
        for (std::int64_t c = 0; c < d; ++c) {
          grad_q[row + c] += ds * key(j, c);
          grad_k[key_row + c] += ds * q[row + c];
          grad_v[key_row + c] += p[j] * d_o[row + c];
        }
      }
    }
  }
  require_close("attention o", dtype, o.read(), out);
  if (biased) require_close("attention result", dtype, result.read(), biased_out);
  if (M == 1) return;  // dq and dk are 0 but for rounding
  require_close("attention dq", dtype, dq.read(), grad_q);
  require_close("attention dk", dtype, dk.read(), grad_k);
  require_close("attention dv", dtype, dv.read(), grad_v);
  if (biased) require_close("attention dkey_bias", dtype, dkey_bias, grad_key_bias);
}

void fuzz_spatial_reduction() {
  const std::int64_t B = draw(0, 2), R = draw(1, 6), C = draw(1, 40);
  const std::int64_t H = R + draw(0, 9), W = R + draw(0, 9);
  const DType dtype = draw_dtype();
  const SpatialReductionSizes s{B, H, W, C, R, dtype, 1e-5f, static_cast<int>(draw(1, 5))};
  const std::int64_t M = s.patches_per_image(), depth = s.depth();
  Tensor x(dtype, random(B * H * W * C)), weight(dtype, random(C * depth));
  Tensor dy(dtype, random(B * M * C));
  const Floats bias = random(C), gamma = random(C), beta = random(C);
  const Tokens tokens{x.data(), H * W * C, C};
  Tensor y(dtype, B * M * C);
  Floats normalized(y.size()), rstd(B * M);
  const CodePath& kernels = code_path(s.dtype);
  const Workspace forward(kernels.spatial_reduction_forward_workspace(s));
  kernels.spatial_reduction_forward(s, tokens, weight.data(), bias.data(), gamma.data(),
                                    beta.data(), y.data(), normalized.data(), rstd.data(),
                                    forward.memory.get());
  Tensor dx(dtype, x.size()), dweight(dtype, weight.size());
  Floats dbias(C), dgamma(C), dbeta(C);
  const Workspace backward(kernels.spatial_reduction_backward_workspace(s));
  kernels.spatial_reduction_backward(
      s, dy.data(), tokens, weight.data(), gamma.data(), normalized.data(), rstd.data(), dx.data(),
      dweight.data(), dbias.data(), dgamma.data(), dbeta.data(), backward.memory.get());

  std::vector<double> out(y.size()), grad_x(x.size()), grad_weight(weight.size());
  std::vector<double> grad_gamma(C), grad_beta(C);
  for (std::int64_t m = 0; m < B * M; ++m) {
    const std::int64_t b = m / M, top = m % M / (W / R) * R, left = m % M % (W / R) * R;
    const auto index = [&](std::int64_t k) {
      const std::int64_t c = k / (R * R), r = k % (R * R) / R, t = k % R;
      return ((b * H + top + r) * W + left + t) * C + c;
    };
    std::vector<double> z(C), dz(C);
    double mean = 0, variance = 0, g_mean = 0, projection = 0;
    for (std::int64_t c = 0; c < C; ++c) {
      z[c] = bias[c];
      for (std::int64_t k = 0; k < depth; ++k)
        z[c] += static_cast<double>(weight[c * depth + k]) * x[index(k)];
      mean += z[c] / C;
    }
    for (double& value : z) variance += std::pow(value -= mean, 2) / C;
    const double scale = 1 / std::sqrt(variance + s.eps);
    for (std::int64_t c = 0; c < C; ++c) {
      z[c] *= scale;
      out[m * C + c] = z[c] * gamma[c] + beta[c];
      const double g = static_cast<double>(dy[m * C + c]) * gamma[c];
      grad_gamma[c] += dy[m * C + c] * z[c];
      grad_beta[c] += dy[m * C + c];
      g_mean += g / C;
      projection += g * z[c] / C;
    }
    for (std::int64_t c = 0; c < C; ++c) {
      dz[c] = scale * (static_cast<double>(dy[m * C + c]) * gamma[c] - g_mean - z[c] * projection);
      for (std::int64_t k = 0; k < depth; ++k) {
        grad_weight[c * depth + k] += dz[c] * x[index(k)];
        grad_x[index(k)] += dz[c] * weight[c * depth + k];
      }
    }
  }
  require_close("spatial_reduction dbeta", dtype, dbeta, grad_beta);
  if (C < 4) return;  // a row of so few channels can be almost constant, and rstd anything
  require_close("spatial_reduction y", dtype, y.read(), out);
  require_close("spatial_reduction dgamma", dtype, dgamma, grad_gamma);
  require_close("spatial_reduction dx", dtype, dx.read(), grad_x);
  require_close("spatial_reduction dweight", dtype, dweight.read(), grad_weight);
}

// Inputs one after another.
struct Parts {
  std::vector<std::int64_t> begins = {0};

  explicit Parts(std::initializer_list<std::int64_t> sizes) {
    for (const std::int64_t size : sizes) begins.push_back(begins.back() + size);
  }
  template <class Value>
  std::vector<Value> operator()(const std::vector<Value>& all, int part) const {
    return {all.begin() + begins[part], all.begin() + begins[part + 1]};
  }
};

// Gradients are checked all at once: the slope in a random direction against the difference
// quotient of `function`, in double precision, around `at`.
template <class Function>
void require_slope(const char* name, DType dtype, const std::vector<double>& at,
                   const Floats& dresult, const Floats& gradient, Function function) {
  const Floats direction = random(static_cast<std::int64_t>(at.size()));
  std::vector<double> ahead = at, behind = at;
  constexpr double kStep = 1e-5;
  double slope = 0, length = 1e-6, expected = 0;
  for (std::size_t i = 0; i < at.size(); ++i) {
    ahead[i] += kStep * direction[i];
    behind[i] -= kStep * direction[i];
    slope += static_cast<double>(gradient[i]) * direction[i];
    length += std::pow(gradient[i], 2);
  }
  const std::vector<double> high = function(ahead), low = function(behind);
  for (std::size_t i = 0; i < high.size(); ++i)
    expected += dresult[i] * (high[i] - low[i]) / (2 * kStep);
  if (std::abs(slope - expected) < accepted_error(dtype) * std::sqrt(length)) return;
  std::fprintf(stderr, "%s: slope %g instead of %g\n", name, slope, expected);
  std::exit(1);
}

// x and y, then weight and bias of q, kv and out.
std::vector<double> multi_head_attention(const AttentionSizes& s, const Parts& parts,
                                         const std::vector<double>& all) {
  const std::int64_t C = s.heads * s.head_dim, N = s.queries, M = s.keys;
  const auto linear = [&](const std::vector<double>& x, int layer) {
    const std::vector<double> weight = parts(all, layer), bias = parts(all, layer + 1);
    std::vector<double> out(x.size() / C * bias.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = bias[i % bias.size()];
      for (std::int64_t c = 0; c < C; ++c)
        out[i] += weight[i % bias.size() * C + c] * x[i / bias.size() * C + c];
    }
    return out;
  };
  const std::vector<double> q = linear(parts(all, 0), 2), kv = linear(parts(all, 1), 4);
  std::vector<double> o(q.size());
  for (std::int64_t i = 0; i < s.batch * N * s.heads; ++i) {
    const std::int64_t b = i / (N * s.heads), h = i % s.heads;
    std::vector<double> p(M);
    double highest = -1e300, total = 0;
    for (std::int64_t j = 0; j < M; ++j) {
      for (std::int64_t c = 0; c < s.head_dim; ++c)
        p[j] += s.scale * q[i * s.head_dim + c] * kv[(b * M + j) * 2 * C + h * s.head_dim + c];
      highest = std::max(highest, p[j]);
    }
    for (double& x : p) total += x = std::exp(x - highest);
    for (std::int64_t j = 0; j < M; ++j)
      for (std::int64_t c = 0; c < s.head_dim; ++c)
        o[i * s.head_dim + c] += p[j] / total * kv[(b * M + j) * 2 * C + C + h * s.head_dim + c];
  }
  return linear(o, 6);
}

void fuzz_multi_head_attention() {
  const std::int64_t B = draw(0, 2), N = draw(1, 130), M = draw(1, 90), heads = draw(1, 3);
  const std::int64_t d = 8 * draw(1, 5), C = heads * d;
  const DType dtype = draw_dtype();
  const AttentionSizes s{B, N, M, heads, d, dtype, 0.3f, static_cast<int>(draw(1, 5))};
  const Parts parts({B * N * C, B * M * C, C * C, C, 2 * C * C, 2 * C, C * C, C});
  Floats all = random(parts.begins.back());
  for (std::int64_t i = parts.begins[2]; i < parts.begins.back(); ++i)
    all[i] /= std::sqrt(static_cast<float>(C));
  std::vector<Tensor> given, gradients;
  for (int part = 0; part < 8; ++part) {
    // the biases, after their weights, are floats
    const DType stored = part > 2 && part % 2 == 1 ? DType::f32 : dtype;
    given.emplace_back(stored, parts(all, part));
    gradients.emplace_back(stored, given[part].size());
    std::copy(given[part].values.begin(), given[part].values.end(),
              all.begin() + parts.begins[part]);
  }
  const auto layer = [&](int part) {
    return Linear{given[part].data(), given[part + 1].values.data()};
  };
  const auto to = [&](int part) {
    return LinearGradient{gradients[part].data(), gradients[part + 1].values.data()};
  };
  const MultiHeadAttention a{
      s, {given[0].data(), N * C, C}, {given[1].data(), M * C, C}, layer(2), layer(4), layer(6)};
  Tensor result(dtype, B * N * C), o(dtype, result.size()), kv(dtype, B * M * 2 * C);
  Floats lse(B * heads * N);
  const CodePath& kernels = code_path(s.dtype);
  const Workspace forward(kernels.multi_head_attention_forward_workspace(s));
  kernels.multi_head_attention_forward(a, result.data(), o.data(), kv.data(), lse.data(),
                                       forward.memory.get());
  Tensor dresult(dtype, random(result.size()));
  const Workspace backward(kernels.multi_head_attention_backward_workspace(s));
  kernels.multi_head_attention_backward(a, {dresult.data(), N * C, C}, o.data(), kv.data(),
                                        lse.data(), gradients[0].data(), gradients[1].data(), to(2),
                                        to(4), to(6), backward.memory.get());

  const std::vector<double> at(all.begin(), all.end());
  require_close("multi_head_attention", dtype, result.read(), multi_head_attention(s, parts, at));
  require_slope("multi_head_attention", dtype, at, dresult.values, joined(gradients),
                [&](const std::vector<double>& v) { return multi_head_attention(s, parts, v); });
}

double activation(Activation kind, double value) {
  if (kind == Activation::relu) return std::max(value, 0.0);
  return value / 2 * std::erfc(-value / std::sqrt(2.0));
}

// x, then weight and bias of fc1, of the convolution and of fc2.
std::vector<double> feed_forward(const FeedForwardSizes& s, const Parts& parts,
                                 const std::vector<double>& all) {
  const std::int64_t N = s.tokens(), C = s.channels, D = s.hidden;
  const std::vector<double> x = parts(all, 0), fc1 = parts(all, 1), fc1_bias = parts(all, 2),
                            taps = parts(all, 3), conv_bias = parts(all, 4), fc2 = parts(all, 5),
                            fc2_bias = parts(all, 6);
  std::vector<double> hidden(s.batch * N * D), out(x.size());
  for (std::int64_t i = 0; i < s.batch * N * D; ++i) {
    hidden[i] = fc1_bias[i % D];
    for (std::int64_t c = 0; c < C; ++c) hidden[i] += fc1[i % D * C + c] * x[i / D * C + c];
    if (s.relu_before_conv) hidden[i] = std::max(hidden[i], 0.0);
  }
  for (std::int64_t token = 0; token < s.batch * N; ++token) {
    const std::int64_t b = token / N, row = token % N / s.width, column = token % N % s.width;
    for (std::int64_t d = 0; d < D; ++d) {
      double value = s.convolved ? conv_bias[d] : hidden[token * D + d];
      for (std::int64_t tap = 0; s.convolved && tap < 9; ++tap) {
        const std::int64_t r = row + tap / 3 - 1, c = column + tap % 3 - 1;
        if (r < 0 || r >= s.height || c < 0 || c >= s.width) continue;
        value += taps[9 * d + tap] * hidden[(b * N + r * s.width + c) * D + d];
      }
      value = activation(s.activation, value);
      for (std::int64_t c = 0; c < C; ++c) out[token * C + c] += fc2[c * D + d] * value;
    }
    for (std::int64_t c = 0; c < C; ++c) out[token * C + c] += fc2_bias[c];
  }
  return out;
}

void fuzz_feed_forward() {
  const bool convolved = draw(0, 1) == 1, biased = draw(0, 3) > 0;
  const std::int64_t B = draw(0, 2), H = draw(1, convolved ? 12 : 130), C = draw(1, 40);
  const std::int64_t W = convolved ? draw(1, 40) : 1, N = H * W, D = draw(1, 150);
  const DType dtype = draw_dtype();
  const Activation kind = draw(0, 2) > 0 ? Activation::gelu : Activation::relu;
  const FeedForwardSizes s{B,
                           H,
                           W,
                           C,
                           D,
                           convolved,
                           convolved && draw(0, 2) == 0,
                           kind,
                           dtype,
                           static_cast<int>(draw(1, 5))};
  const Parts parts({B * N * C, D * C, D, convolved ? 9 * D : 0, convolved ? D : 0, C * D, C});
  std::vector<Tensor> given, gradients;
  for (int part = 0; part < 7; ++part) {
    const std::int64_t size = parts.begins[part + 1] - parts.begins[part];
    const bool bias = part == 2 || part == 4 || part == 6, conv = part == 3;
    Floats values = bias && !biased ? Floats(size) : random(size);
    const float gain = part == 1 ? C : part == 5 ? D : conv ? 9 : 1;
    for (float& value : values) value /= std::sqrt(gain);
    // all but matrices and tokens are floats
    given.emplace_back(bias || conv ? DType::f32 : dtype, std::move(values));
    gradients.emplace_back(bias || conv ? DType::f32 : dtype, given[part].size());
  }
  const auto bias = [&](int part) { return biased ? given[part].values.data() : nullptr; };
  const FeedForward f{s,
                      {given[0].data(), N * C, C},
                      {given[1].data(), bias(2)},
                      {convolved ? given[3].data() : nullptr, convolved ? bias(4) : nullptr},
                      {given[5].data(), bias(6)}};
  Tensor result(dtype, B * N * C), dresult(dtype, random(B * N * C));
  const CodePath& kernels = code_path(s.dtype);
  const Workspace forward(kernels.feed_forward_forward_workspace(s));
  kernels.feed_forward_forward(f, result.data(), forward.memory.get());
  const Workspace backward(kernels.feed_forward_backward_workspace(s));
  kernels.feed_forward_backward(f, {dresult.data(), N * C, C}, gradients[0].data(),
                                {gradients[1].data(), gradients[2].values.data()},
                                {gradients[3].data(), gradients[4].values.data()},
                                gradients[5].data(), backward.memory.get());
  // no kernel has the gradient of fc2's bias
  for (std::int64_t i = 0; i < B * N * C; ++i) gradients[6].values[i % C] += dresult[i];
  const Floats all = joined(given);
  const std::vector<double> at(all.begin(), all.end());
  require_close("feed_forward", dtype, result.read(), feed_forward(s, parts, at));
  // a difference quotient across ReLU's bend is no slope
  if (kind == Activation::relu || s.relu_before_conv) return;
  require_slope("feed_forward", dtype, at, dresult.values, joined(gradients),
                [&](const std::vector<double>& v) { return feed_forward(s, parts, v); });
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 60;
  for (const std::string& path : capabilities()) {
    setenv("PVT_KERNELS_CPU_CAPABILITY", path.c_str(), 1);
    for (int round = 0; round < rounds; ++round) {
      fuzz_attention();
      fuzz_spatial_reduction();
      fuzz_multi_head_attention();
      fuzz_feed_forward();
    }
    std::printf("%s: %d random shapes of each op\n", path.c_str(), rounds);
  }
}
