// The C functions of what lies between the products of the feed-forward network: they check a call
// and have the device's family make its plan.
#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/feed_forward_launch.cuh"
#include "cuda/runtime.h"

using namespace pvt_kernels::cuda;

namespace {

// blocks that a multiprocessor holds, waves of them, and rows below which a block would load as
// many neighbours' as its own
constexpr int kResident = 3, kWaves = 2, kLeastRows = 4;

// On the current device.
Hidden walk(const pvtk_hidden& call) {
  Hidden p{};
  std::int64_t images = call.images, rows = call.rows, width = call.width;
  p.tokens = static_cast<int>(images * rows * width);
  if (!call.convolved) {
    rows = ceil_div<std::int64_t>(p.tokens, kHiddenColumns);
    width = kHiddenColumns;
    images = 1;
  }
  p.rows = static_cast<int>(rows);
  p.width = static_cast<int>(width);
  p.before = static_cast<int>(call.before);
  p.after = static_cast<int>(call.after);
  p.above = static_cast<int>(call.above);
  p.below = static_cast<int>(call.below);
  p.channels = static_cast<int>(call.hidden);
  p.gelu = call.activation == PVTK_GELU;
  p.strips = static_cast<int>(ceil_div(width, kHiddenColumns));
  p.channel_tiles = static_cast<int>(ceil_div(call.hidden, kHiddenChannels));
  const std::int64_t columns = std::max<std::int64_t>(1, images * p.strips * p.channel_tiles);
  const std::int64_t wanted = ceil_div(kWaves * kResident * multiprocessors(), columns);
  const std::int64_t most = std::max<std::int64_t>(kLeastRows, ceil_div(rows, wanted));
  p.walked = static_cast<int>(std::min(rows, most));
  p.pieces = static_cast<int>(ceil_div(rows, p.walked));
  p.blocks = columns * p.pieces;
  return p;
}

void check_call(const pvtk_hidden& call) {
  constexpr std::int64_t kMost = 1 << 30;  // the kernels count in 32 bits
  require(call.images >= 1 && call.rows >= 1 && call.width >= 1 && call.images <= kMost &&
              call.rows <= kMost / call.images && call.width <= kMost / (call.images * call.rows),
          "images, rows and width must be at least 1, and the tokens at most 2^30");
  require(call.hidden >= 8 && call.hidden % 8 == 0 && call.hidden <= kMost,
          "hidden must be a multiple of 8 up to 2^30, got " + std::to_string(call.hidden));
  require(call.before >= 0 && call.after >= 0 && call.above >= 0 && call.below >= 0 &&
              call.above + call.below < call.rows,
          "before, after, above and below must not be negative, and above + below less than rows");
  require(call.activation == PVTK_GELU || call.activation == PVTK_RELU,
          "activation must be PVTK_GELU or PVTK_RELU, got " +
              std::to_string(static_cast<int>(call.activation)));
  require(call.convolved ||
              !(call.before || call.after || call.above || call.below || call.relu_before_conv),
          "before, after, above, below and relu_before_conv need a convolution");
}

void check_convolved(const pvtk_hidden& call) {
  require(call.convolved, "only a call with a convolution has that");
}

}  // namespace

pvtk_status pvtk_plan_hidden_forward(const pvtk_hidden* call, pvtk_plan** plan) {
  return make_plan("hidden_forward", call->device, plan, [&] {
    check_call(*call);
    check_convolved(*call);
    const CurrentDevice device(call->device);
    const Hidden p = walk(*call);
    return with_family([&](auto family) { return plan_hidden_forward<family.value>(*call, p); });
  });
}

pvtk_status pvtk_hidden_parts(const pvtk_hidden* call, int64_t* parts) {
  return report("hidden_parts", [&] {
    check_call(*call);
    const CurrentDevice device(call->device);
    const Hidden p = walk(*call);
    *parts = p.blocks / p.channel_tiles;
  });
}

pvtk_status pvtk_plan_hidden_dc(const pvtk_hidden* call, pvtk_plan** plan) {
  return make_plan("hidden_dc", call->device, plan, [&] {
    check_call(*call);
    const CurrentDevice device(call->device);
    const Hidden p = walk(*call);
    return with_family([&](auto family) { return plan_hidden_dc<family.value>(*call, p); });
  });
}

pvtk_status pvtk_plan_hidden_dh(const pvtk_hidden* call, pvtk_plan** plan) {
  return make_plan("hidden_dh", call->device, plan, [&] {
    check_call(*call);
    check_convolved(*call);
    const CurrentDevice device(call->device);
    const Hidden p = walk(*call);
    return with_family([&](auto family) { return plan_hidden_dh<family.value>(*call, p); });
  });
}
