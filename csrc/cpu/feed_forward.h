#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/multi_head_attention.h"

namespace pvt_kernels::cpu {

enum class Activation { gelu, relu };

// Tokens (B, N, C) through a hidden layer: with `convolved` N = height * width, row-major, else
// width is 1.
struct FeedForwardSizes {
  std::int64_t batch, height, width, channels, hidden;
  bool convolved, relu_before_conv;
  Activation activation;
  DType dtype;
  int threads;

  std::int64_t tokens() const { return height * width; }
};

// fc2(activation(conv(fc1(x)))): fc1.weight (hidden, C) and fc2.weight (C, hidden), contiguous in
// the dtype; of the depthwise convolution, 3 x 3 with zeros around the map, the fp32 weight
// (hidden, 9) and bias (hidden) or null.
struct FeedForward {
  FeedForwardSizes sizes;
  Tokens x;
  Linear fc1, conv, fc2;
};

// Bytes of scratch memory for all threads; the caller allocates it, 64-byte aligned.
using FeedForwardWorkspace = std::size_t(const FeedForwardSizes& sizes);

// result (B, N, C) in the dtype, contiguous.
using FeedForwardForward = void(const FeedForward& f, void* result, void* workspace);

// dx in the dtype, contiguous; the gradients of the layers' weights in the dtype, of the biases and
// of the convolution in fp32; fc2's bias has none here. The result depends on the number of threads
// but not on their scheduling.
using FeedForwardBackward = void(const FeedForward& f, Tokens dresult, void* dx,
                                 LinearGradient fc1_gradient, LinearGradient conv_gradient,
                                 void* fc2_weight_gradient, void* workspace);

}  // namespace pvt_kernels::cpu
