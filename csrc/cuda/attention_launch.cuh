// What the attention launchers share: the checks of a call.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/dispatch.cuh"

namespace pvt_kernels::cuda {

inline AttentionSizes checked_sizes(const pvtk_attention& call) {
  const auto positive = [](const char* name, std::int64_t size) {
    require(size >= 1, std::string(name) + " must be at least 1, got " + std::to_string(size));
  };
  positive("queries", call.queries);
  positive("keys", call.keys);
  positive("heads", call.heads);
  require(call.heads <= std::numeric_limits<std::int32_t>::max(), "heads must be below 2^31");
  require(call.batch >= 0, "batch must not be negative, got " + std::to_string(call.batch));
  require(call.head_dim >= 8 && call.head_dim <= 128 && call.head_dim % 8 == 0,
          "head_dim must be a multiple of 8 up to 128, got " + std::to_string(call.head_dim));
  return {call.queries, call.keys, static_cast<int>(call.heads), static_cast<int>(call.head_dim),
          call.scale};
}

inline void check_alignment(const pvtk_attention& call, const char* name, const pvtk_heads& t,
                            std::int64_t tokens) {
  const std::int64_t size = element_size(call.dtype);
  const auto aligned = [&](std::int64_t count, std::int64_t stride) {
    return count == 1 || stride * size % 16 == 0;
  };
  require(
      is_aligned(t.data) && (call.batch <= 1 || aligned(call.batch, t.batch_stride)) &&
          aligned(tokens, t.token_stride) && aligned(call.heads, t.head_stride),
      std::string(name) + " must have an address and strides (in bytes) that are multiples of 16");
}

}  // namespace pvt_kernels::cuda
