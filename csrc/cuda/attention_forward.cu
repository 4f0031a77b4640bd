#include "cuda/attention_forward.cuh"
#include "cuda/attention_launch.cuh"

using namespace pvt_kernels::cuda;

pvtk_status pvtk_attention_forward(const pvtk_attention* call, pvtk_heads q, pvtk_heads k,
                                   pvtk_heads v, void* o, float* lse) {
  return report("attention_forward", [&] {
    const AttentionForward p{checked_sizes(*call), q, k, v, o, lse};
    check_alignment(*call, "q", q, call->queries);
    check_alignment(*call, "k", k, call->keys);
    check_alignment(*call, "v", v, call->keys);
    check_pointers({{"o", o}, {"lse", lse}});
    const CurrentDevice device(call->device);
    const std::int64_t blocks = ceil_div(call->queries, kBlockRows) * call->batch * call->heads;
    with_atom(call->dtype, code_arch(), [&](auto atom) {
      with_head_dim(call->head_dim, [&](auto width) {
        using Atom = decltype(atom);
        constexpr int D = decltype(width)::value;
        launch(attention_forward_kernel<Atom, D>, blocks, kThreads, ForwardMemory<Atom, D>::kBytes,
               call->stream, p);
      });
    });
  });
}
