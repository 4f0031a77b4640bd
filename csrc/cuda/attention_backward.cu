#include <algorithm>

#include "cuda/attention_backward.cuh"
#include "cuda/attention_launch.cuh"
#include "cuda/fold_launch.cuh"

using namespace pvt_kernels::cuda;

namespace {

struct Workspace {
  std::int64_t steps_per_split, splits;
  std::int64_t delta_floats, partial_floats;

  // On the current device.
  explicit Workspace(const pvtk_attention& call) {
    const std::int64_t units = call.batch * call.heads;
    std::int64_t step = 0, rows = 0;
    with_atom(call.dtype, code_arch(), [&](auto atom) {
      with_head_dim(call.head_dim, [&](auto width) {
        using Memory = BackwardMemory<decltype(atom), decltype(width)::value>;
        step = Memory::kStep;
        rows = Memory::kRows;
      });
    });
    const std::int64_t key_tiles = ceil_div(call.keys, rows);
    const std::int64_t steps = ceil_div(call.queries, step);
    // two waves of the two blocks that a multiprocessor holds
    const std::int64_t wanted =
        ceil_div(4 * multiprocessors(), std::max<std::int64_t>(1, key_tiles * units));
    steps_per_split = ceil_div(steps, std::min(wanted, steps));
    splits = ceil_div(steps, steps_per_split);
    // the partials begin at a multiple of 16 bytes
    delta_floats = ceil_div(units * call.queries, 4) * 4;
    partial_floats = splits * 2 * units * call.keys * call.head_dim;
  }
};

}  // namespace

pvtk_status pvtk_attention_backward_workspace(const pvtk_attention* call, size_t* bytes) {
  return report("attention_backward_workspace", [&] {
    checked_sizes(*call);
    const CurrentDevice device(call->device);
    const Workspace workspace(*call);
    *bytes = (workspace.delta_floats + workspace.partial_floats) * sizeof(float);
  });
}

pvtk_status pvtk_attention_backward(const pvtk_attention* call, pvtk_heads d_o, pvtk_heads q,
                                    pvtk_heads k, pvtk_heads v, pvtk_heads o, const float* lse,
                                    void* dq, void* dk, void* dv, void* workspace) {
  return report("attention_backward", [&] {
    const AttentionSizes sizes = checked_sizes(*call);
    check_alignment(*call, "do", d_o, call->queries);
    check_alignment(*call, "q", q, call->queries);
    check_alignment(*call, "k", k, call->keys);
    check_alignment(*call, "v", v, call->keys);
    check_alignment(*call, "o", o, call->queries);
    check_pointers({{"lse", lse}, {"dq", dq}, {"dk", dk}, {"dv", dv}, {"workspace", workspace}});
    const CurrentDevice device(call->device);
    const Workspace w(*call);
    auto* delta = static_cast<float*>(workspace);
    float* partials = delta + w.delta_floats;
    const AttentionBackward p{
        sizes, d_o, q, k, v, o, lse, delta, partials, dq, call->batch, w.splits, w.steps_per_split};
    const std::int64_t units = call->batch * call->heads;
    const std::int64_t values = units * call->keys * call->head_dim;
    with_atom(call->dtype, code_arch(), [&](auto atom) {
      using Atom = decltype(atom);
      with_head_dim(call->head_dim, [&](auto width) {
        constexpr int D = decltype(width)::value;
        constexpr int kLanes = D / Vector<typename Atom::Type>::kSize;
        using Memory = BackwardMemory<Atom, D>;
        const std::int64_t query_blocks = ceil_div(call->queries, Memory::kRows) * units;
        const std::int64_t key_blocks = ceil_div(call->keys, Memory::kRows) * w.splits * units;
        launch(attention_delta_kernel<Atom, D>, ceil_div(units * call->queries * kLanes, kThreads),
               kThreads, 0, call->stream, p);
        launch(attention_dq_kernel<Atom, D>, query_blocks, Memory::kThreads, Memory::kBytes,
               call->stream, p);
        launch(attention_dk_dv_kernel<Atom, D>, key_blocks, Memory::kThreads, Memory::kBytes,
               call->stream, p);
      });
      launch_fold<Atom>({partials, w.splits, 2, values, {dk, dv}}, call->stream);
    });
  });
}
