// The C functions of attention: they check a call and have the device's family make its plan.
#include "cuda/attention_launch.cuh"
#include "cuda/dispatch.h"
#include "cuda/runtime.h"

using namespace pvt_kernels::cuda;

namespace {

// The kernels count in 32 bits, and a block's rows may go on beyond the last.
constexpr std::int64_t kMost = 1 << 30;

void require_size(const char* name, std::int64_t size, std::int64_t least) {
  require(size >= least && size <= kMost, std::string(name) + " must be from " +
                                              std::to_string(least) + " to 2^30, got " +
                                              std::to_string(size));
}

AttentionSizes checked_sizes(const pvtk_attention& call) {
  require_size("queries", call.queries, 1);
  require_size("keys", call.keys, 1);
  require_size("heads", call.heads, 1);
  require_size("batch", call.batch, 0);
  require(call.head_dim >= 8 && call.head_dim <= 128 && call.head_dim % 8 == 0,
          "head_dim must be a multiple of 8 up to 128, got " + std::to_string(call.head_dim));
  return {static_cast<int>(call.queries), static_cast<int>(call.keys), static_cast<int>(call.heads),
          static_cast<int>(call.head_dim), call.scale};
}

// A tensor at an address that a launch has.
Heads checked_heads(const pvtk_attention& call, const char* name, const pvtk_head_strides& strides,
                    std::int64_t tokens) {
  const auto check = [&](const char* dimension, std::int64_t count, std::int64_t stride) {
    require(count <= 1 || stride * element_size(call.dtype) % 16 == 0,
            std::string(name) + " must have strides that are multiples of 16 bytes, got " +
                std::to_string(stride) + " elements for " + dimension);
  };
  check("batch", call.batch, strides.batch);
  check("tokens", tokens, strides.token);
  check("heads", call.heads, strides.head);
  return {nullptr, strides.batch, strides.token, strides.head};
}

}  // namespace

pvtk_status pvtk_plan_attention_forward(const pvtk_attention* call, pvtk_head_strides q,
                                        pvtk_head_strides k, pvtk_head_strides v, int saves,
                                        pvtk_plan** plan) {
  return make_plan("attention_forward", call->device, plan, [&] {
    const AttentionForward p{checked_sizes(*call),
                             checked_heads(*call, "q", q, call->queries),
                             checked_heads(*call, "k", k, call->keys),
                             checked_heads(*call, "v", v, call->keys),
                             nullptr,
                             nullptr};
    const CurrentDevice device(call->device);
    return with_family(
        [&](auto family) { return plan_attention_forward<family.value>(*call, p, saves != 0); });
  });
}

pvtk_status pvtk_plan_attention_backward(const pvtk_attention* call, pvtk_head_strides d_o,
                                         pvtk_head_strides q, pvtk_head_strides k,
                                         pvtk_head_strides v, pvtk_head_strides o,
                                         int64_t dkv_stride, pvtk_plan** plan) {
  return make_plan("attention_backward", call->device, plan, [&] {
    AttentionBackward p{};
    p.sizes = checked_sizes(*call);
    p.d_o = checked_heads(*call, "do", d_o, call->queries);
    p.q = checked_heads(*call, "q", q, call->queries);
    p.k = checked_heads(*call, "k", k, call->keys);
    p.v = checked_heads(*call, "v", v, call->keys);
    p.o = checked_heads(*call, "o", o, call->queries);
    p.batch = static_cast<int>(call->batch);
    require(dkv_stride >= call->heads * call->head_dim &&
                dkv_stride * element_size(call->dtype) % 16 == 0,
            "dkv_stride must be at least heads * head_dim and in bytes a multiple of 16, got " +
                std::to_string(dkv_stride));
    const CurrentDevice device(call->device);
    return with_family(
        [&](auto family) { return plan_attention_backward<family.value>(*call, p, dkv_stride); });
  });
}
