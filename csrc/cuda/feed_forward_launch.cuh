// What the kernels between the products of the feed-forward network take, and their plans, of which
// each family of architectures has its own.
#pragma once

#include "cuda/launch.h"
#include "cuda/tiles.cuh"

namespace pvt_kernels::cuda {

struct PlanParts;

// What a block computes: neighbouring columns and channels, 4 of these a thread, down some rows.
constexpr int kHiddenColumns = 16;
constexpr int kHiddenChannels = 32;
static_assert(kHiddenColumns * kHiddenChannels == 4 * kThreads);

// Sums over tokens: of the convolution's weight, 9 taps, its bias, and fc1's bias.
constexpr int kTaps = 9;
constexpr int kConvSums = kTaps + 2;

// A window of the hidden layer and how blocks walk over it; see pvtk_hidden.
struct Hidden {
  int rows, width, before, after, above, below, channels;
  bool gelu;
  int walked, pieces, strips, channel_tiles;  // rows of a block; blocks of a column, row, token
  std::int64_t blocks;
  const void *h, *weight, *bias;
  void *dc, *a, *dh;
  float* sums;  // (parts, kConvSums or 1, channels)
  int tokens;
};

// Of `p` all but the addresses is given.
template <int kFamily>
PlanParts plan_hidden_forward(const pvtk_hidden& call, const Hidden& p);

template <int kFamily>
PlanParts plan_hidden_dc(const pvtk_hidden& call, const Hidden& p);

template <int kFamily>
PlanParts plan_hidden_dh(const pvtk_hidden& call, const Hidden& p);

}  // namespace pvt_kernels::cuda
