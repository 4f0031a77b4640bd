// The C functions of attention: they check a call and hand it to the kernels of the device's
// family.
#include "cuda/attention_config.cuh"
#include "cuda/attention_launch.cuh"
#include "cuda/blocks.h"
#include "cuda/dispatch.h"

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

void check_alignment(const pvtk_attention& call, const char* name, const pvtk_heads& t,
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

struct Workspace {
  int steps_per_split, splits;
  std::int64_t delta_floats, progress_words, partial_floats;

  // On the current device.
  explicit Workspace(const pvtk_attention& call) {
    const std::int64_t batch_heads = call.batch * call.heads;
    KeyTiling tiling;
    with_family(
        [&](auto family) { tiling = dk_dv_tiling<family.value>(call.dtype, call.head_dim); });
    const Split split = dk_dv_split(call, tiling, multiprocessors());
    steps_per_split = split.steps;
    splits = split.count;
    // each part begins at a multiple of 16 bytes
    const auto padded = [](std::int64_t words) { return ceil_div(words, 4) * 4; };
    delta_floats = padded(batch_heads * call.queries);
    const std::int64_t blocks = ceil_div(call.keys, tiling.keys) * splits * batch_heads;
    progress_words = tiling.with_dq ? padded(1 + blocks * JointTiling::kWarps) : 0;
    partial_floats = std::int64_t{splits} * 2 * batch_heads * call.keys * call.head_dim;
  }
};

}  // namespace

pvtk_status pvtk_attention_forward(const pvtk_attention* call, pvtk_heads q, pvtk_heads k,
                                   pvtk_heads v, void* o, float* lse) {
  return report("attention_forward", [&] {
    const AttentionForward p{checked_sizes(*call), q, k, v, o, lse};
    check_alignment(*call, "q", q, call->queries);
    check_alignment(*call, "k", k, call->keys);
    check_alignment(*call, "v", v, call->keys);
    check_pointers({{"o", o}, {"lse", lse}});
    const CurrentDevice device(call->device);
    with_family([&](auto family) { launch_attention_forward<family.value>(*call, p); });
  });
}

pvtk_status pvtk_attention_backward_workspace(const pvtk_attention* call, size_t* bytes) {
  return report("attention_backward_workspace", [&] {
    checked_sizes(*call);
    const CurrentDevice device(call->device);
    const Workspace workspace(*call);
    *bytes = 4 * (workspace.delta_floats + workspace.progress_words + workspace.partial_floats);
  });
}

pvtk_status pvtk_attention_backward(const pvtk_attention* call, pvtk_heads d_o, pvtk_heads q,
                                    pvtk_heads k, pvtk_heads v, pvtk_heads o, const float* lse,
                                    void* dq, void* dk, void* dv, int64_t dkv_stride,
                                    void* workspace) {
  return report("attention_backward", [&] {
    const AttentionSizes sizes = checked_sizes(*call);
    check_alignment(*call, "do", d_o, call->queries);
    check_alignment(*call, "q", q, call->queries);
    check_alignment(*call, "k", k, call->keys);
    check_alignment(*call, "v", v, call->keys);
    check_alignment(*call, "o", o, call->queries);
    check_pointers({{"lse", lse}, {"dq", dq}, {"dk", dk}, {"dv", dv}, {"workspace", workspace}});
    require(dkv_stride >= call->heads * call->head_dim &&
                dkv_stride * element_size(call->dtype) % 16 == 0,
            "dkv_stride must be at least heads * head_dim and in bytes a multiple of 16, got " +
                std::to_string(dkv_stride));
    const CurrentDevice device(call->device);
    const Workspace w(*call);
    auto* delta = static_cast<float*>(workspace);
    auto* progress = reinterpret_cast<unsigned*>(delta + w.delta_floats);
    auto* partials = reinterpret_cast<float*>(progress + w.progress_words);
    const AttentionBackward p{sizes,
                              d_o,
                              q,
                              k,
                              v,
                              o,
                              lse,
                              delta,
                              progress,
                              w.progress_words,
                              partials,
                              dq,
                              static_cast<int>(call->batch),
                              w.splits,
                              w.steps_per_split};
    with_family([&](auto family) {
      launch_attention_backward<family.value>(*call, p, dk, dv, dkv_stride);
    });
  });
}
