// What lies between the products of the feed-forward network: the depthwise convolution, 3 x 3, and
// the activation, and the way back through both. The formulas are in
// pvt_kernels/backends/reference/feed_forward.py.
//
// A thread has a column and 4 channels. Walking down the map it keeps two of the three rows that
// the convolution reads, with their neighbours to both sides, in registers, so that it loads each
// once.
#pragma once

#include "cuda/feed_forward_launch.cuh"

namespace pvt_kernels::cuda {

__device__ __forceinline__ float4 zeros() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

__device__ __forceinline__ void add(float4& sum, float4 x) {
  sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
}

__device__ __forceinline__ void add_products(float4& sum, float4 a, float4 b) {
  sum = make_float4(fmaf(a.x, b.x, sum.x), fmaf(a.y, b.y, sum.y), fmaf(a.z, b.z, sum.z),
                    fmaf(a.w, b.w, sum.w));
}

// f of each of the four.
template <class F>
__device__ __forceinline__ float4 map(float4 x, F f) {
  return make_float4(f(x.x), f(x.y), f(x.z), f(x.w));
}
template <class F>
__device__ __forceinline__ float4 map(float4 x, float4 y, F f) {
  return make_float4(f(x.x, y.x), f(x.y, y.y), f(x.z, y.z), f(x.w, y.w));
}

// That of NaN is NaN.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ float normal_cdf(float x) {
  return 0.5f + 0.5f * erff(x * 0.70710678118654752f);
}

__device__ __forceinline__ float4 activate(float4 c, bool gelu) {
  return map(c, [gelu](float x) { return gelu ? x * normal_cdf(x) : relu(x); });
}

// The gradient of c from that of its activation.
__device__ __forceinline__ float4 activation_gradient(float4 c, float4 da, bool gelu) {
  return map(c, da, [gelu](float x, float d) {
    if (!gelu) return x > 0.0f ? d : 0.0f;
    const float density = expf(-0.5f * x * x) * 0.39894228040143268f;
    return d * (normal_cdf(x) + x * density);
  });
}

// Where a thread is.
struct Place {
  std::int64_t part, image;
  int first_row, end_row, column, channel;

  __device__ explicit Place(const Hidden& p) {
    const int tile = blockIdx.x % p.channel_tiles;
    part = blockIdx.x / p.channel_tiles;
    const int strip = part % p.strips, piece = part / p.strips % p.pieces;
    image = part / p.strips / p.pieces;
    first_row = piece * p.walked;
    end_row = first_row + p.walked < p.rows ? first_row + p.walked : p.rows;
    column = strip * kHiddenColumns + static_cast<int>(threadIdx.x) / (kHiddenChannels / 4);
    channel = tile * kHiddenChannels + static_cast<int>(threadIdx.x) % (kHiddenChannels / 4) * 4;
  }

  // Of the thread's four channels in a map of so many rows.
  __device__ std::int64_t index(const Hidden& p, std::int64_t height, std::int64_t row) const {
    return ((image * height + row) * p.width + column) * p.channels + channel;
  }
};

template <class T>
__device__ __forceinline__ float4 load_quad(const void* data, std::int64_t index) {
  return to_float(
      ptx::load_global(reinterpret_cast<const Quad<T>*>(static_cast<const T*>(data) + index)));
}

// Of what the kernel writes too, by the same thread and later.
template <class T>
__device__ __forceinline__ float4 load_own_quad(const void* data, std::int64_t index) {
  return to_float(
      ptx::load_own(reinterpret_cast<const Quad<T>*>(static_cast<const T*>(data) + index)));
}

template <class T>
__device__ __forceinline__ void store_quad(void* data, std::int64_t index, float4 x) {
  ptx::store_global(reinterpret_cast<Quad<T>*>(static_cast<T*>(data) + index), round_quad<T>(x));
}

// The three rows that a token's convolution reads, each with its left, own and right column.
template <class T, bool kRelu>
struct Rows3 {
  float4 x[3][3];

  __device__ __forceinline__ void load(int to, const Hidden& p, const Place& at, const void* map_,
                                       int height, int row) {
    const bool inside = row >= 0 && row < height && at.channel < p.channels;
    const std::int64_t index = at.index(p, height, row);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int column = at.column + i - 1;
      x[to][i] = zeros();
      if (inside && column >= 0 && column < p.width) {
        x[to][i] = load_quad<T>(map_, index + (i - 1) * std::int64_t{p.channels});
        if constexpr (kRelu) x[to][i] = map(x[to][i], [](float value) { return relu(value); });
      }
    }
  }

  __device__ __forceinline__ void move_up() {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      x[0][i] = x[1][i];
      x[1][i] = x[2][i];
    }
  }
};

// The convolution's weight for four channels.
struct Taps {
  float4 x[kTaps];

  // (D, 1, 3, 3): four channels' taps lie side by side.
  template <class T>
  __device__ __forceinline__ void load(const void* weight, int channel) {
    float values[4 * kTaps];
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      const float4 part = load_quad<T>(weight, std::int64_t{channel} * kTaps + 4 * i);
      values[4 * i] = part.x;
      values[4 * i + 1] = part.y;
      values[4 * i + 2] = part.z;
      values[4 * i + 3] = part.w;
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      x[i] =
          make_float4(values[i], values[kTaps + i], values[2 * kTaps + i], values[3 * kTaps + i]);
  }

  // Of the tap at a row and a column, or with kFlip of the one across the middle.
  template <bool kFlip, class Rows>
  __device__ __forceinline__ float4 convolve(const Rows& rows, float4 sum) const {
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      add_products(sum, x[kFlip ? kTaps - 1 - i : i], rows.x[i / 3][i % 3]);
    return sum;
  }
};

// a = activation(conv(h)) of the window.
template <class Atom, bool kRelu>
__global__ void __launch_bounds__(kThreads) hidden_forward_kernel(Hidden p) {
  using T = typename Atom::Type;
  const Place at(p);
  if (at.channel >= p.channels || at.column >= p.width) return;
  const int height = p.before + p.rows + p.after;
  Taps taps;
  taps.template load<T>(p.weight, at.channel);
  const float4 bias = p.bias ? load_quad<T>(p.bias, at.channel) : zeros();
  Rows3<T, kRelu> rows;
  rows.load(0, p, at, p.h, height, at.first_row + p.before - 1);
  rows.load(1, p, at, p.h, height, at.first_row + p.before);
  for (int row = at.first_row; row < at.end_row; ++row) {
    rows.load(2, p, at, p.h, height, row + p.before + 1);
    store_quad<T>(p.a, at.index(p, p.rows, row),
                  activate(taps.template convolve<false>(rows, bias), p.gelu));
    rows.move_up();
  }
}

// Adds the block's sums over its columns, of which each thread has a part, to its part of p.sums.
template <int kSums>
__device__ __forceinline__ void add_sums(const Hidden& p, const Place& at, float4 (&sums)[kSums],
                                         int first, int of) {
  constexpr int kQuads = kHiddenChannels / 4;
  float4* shared = reinterpret_cast<float4*>(shared_memory);  // (warps, sums, quads)
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int step = kQuads; step < kWarpSize; step *= 2) {
      const auto other = [step](float x) { return __shfl_xor_sync(0xffffffff, x, step); };
      add(sums[i], map(sums[i], other));
    }
    if (lane_index() < kQuads)
      ptx::store_shared(shared + (warp_index() * kSums + i) * kQuads + lane_index(), sums[i]);
  }
  __syncthreads();
  const int thread = threadIdx.x;
  if (at.channel >= p.channels) return;
  for (int i = thread / kQuads; i < kSums; i += kThreads / kQuads) {
    float4 sum = zeros();
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp)
      add(sum, ptx::load_shared(shared + (warp * kSums + i) * kQuads + thread % kQuads));
    const std::int64_t index = (at.part * of + first + i) * p.channels + at.channel;
    add(sum, load_own_quad<float>(p.sums, index));
    store_quad<float>(p.sums, index, sum);
  }
}

// Bytes of shared memory for that.
constexpr int sums_bytes(int sums) { return kWarps * sums * kHiddenChannels * sizeof(float); }

// dc in place of da; of rows that are no other slab's also a, and all sums but the last.
template <class Atom, bool kRelu>
__global__ void __launch_bounds__(kThreads, 3) hidden_dc_kernel(Hidden p) {
  using T = typename Atom::Type;
  const Place at(p);
  const bool there = at.channel < p.channels && at.column < p.width;
  const int height = p.before + p.rows + p.after, own_rows = p.rows - p.above - p.below;
  float4 sums[kTaps + 1];
#pragma unroll
  for (float4& sum : sums) sum = zeros();
  if (there) {
    Taps taps;
    taps.template load<T>(p.weight, at.channel);
    const float4 bias = p.bias ? load_quad<T>(p.bias, at.channel) : zeros();
    Rows3<T, kRelu> rows;
    rows.load(0, p, at, p.h, height, at.first_row + p.before - 1);
    rows.load(1, p, at, p.h, height, at.first_row + p.before);
    for (int row = at.first_row; row < at.end_row; ++row) {
      rows.load(2, p, at, p.h, height, row + p.before + 1);
      const std::int64_t index = at.index(p, p.rows, row);
      const float4 c = taps.template convolve<false>(rows, bias);
      const float4 dc = activation_gradient(c, load_own_quad<T>(p.dc, index), p.gelu);
      store_quad<T>(p.dc, index, dc);
      if (row >= p.above && row < p.rows - p.below) {
        store_quad<T>(p.a, at.index(p, own_rows, row - p.above), activate(c, p.gelu));
#pragma unroll
        for (int i = 0; i < kTaps; ++i) add_products(sums[i], dc, rows.x[i / 3][i % 3]);
        add(sums[kTaps], dc);
      }
      rows.move_up();
    }
  }
  add_sums(p, at, sums, 0, kConvSums);
}

// dh in place of h, and the last sum.
template <class Atom, bool kRelu>
__global__ void __launch_bounds__(kThreads) hidden_dh_kernel(Hidden p) {
  using T = typename Atom::Type;
  const Place at(p);
  const int height = p.before + p.rows + p.after;
  float4 sums[1] = {zeros()};
  if (at.channel < p.channels && at.column < p.width) {
    Taps taps;
    taps.template load<T>(p.weight, at.channel);
    Rows3<T, false> rows;
    rows.load(0, p, at, p.dc, height, at.first_row + p.before - 1);
    rows.load(1, p, at, p.dc, height, at.first_row + p.before);
    for (int row = at.first_row; row < at.end_row; ++row) {
      rows.load(2, p, at, p.dc, height, row + p.before + 1);
      const std::int64_t index = at.index(p, p.rows, row);
      float4 dh = taps.template convolve<true>(rows, zeros());
      if constexpr (kRelu)
        dh = map(dh, load_own_quad<T>(p.dh, index),
                 [](float d, float h) { return h > 0.0f ? d : 0.0f; });
      store_quad<T>(p.dh, index, dh);
      add(sums[0], dh);
      rows.move_up();
    }
  }
  add_sums(p, at, sums, kConvSums - 1, kConvSums);
}

// Without a convolution: dc in place of da, a in place of h, and the sum of dc. Tokens have no
// neighbours, and are in rows of a block's columns.
template <class Atom>
__global__ void __launch_bounds__(kThreads) hidden_plain_kernel(Hidden p) {
  using T = typename Atom::Type;
  const Place at(p);
  float4 sums[1] = {zeros()};
  for (int row = at.first_row; row < at.end_row; ++row) {
    if (at.channel >= p.channels || row * kHiddenColumns + at.column >= p.tokens) break;
    const std::int64_t index = at.index(p, p.rows, row);
    const float4 h = load_own_quad<T>(p.a, index);
    const float4 dc = activation_gradient(h, load_own_quad<T>(p.dc, index), p.gelu);
    store_quad<T>(p.dc, index, dc);
    store_quad<T>(p.a, index, activate(h, p.gelu));
    add(sums[0], dc);
  }
  add_sums(p, at, sums, 0, 1);
}

}  // namespace pvt_kernels::cuda
