#include "cuda/attention_forward.cuh"
#include "cuda/family.cuh"

namespace pvt_kernels::cuda {

template <>
void launch_attention_forward<kFamily>(const pvtk_attention& call, const AttentionForward& p) {
  const std::int64_t blocks = ceil_div(call.queries, kBlockRows) * call.batch * call.heads;
  with_atom<kFamily>(call.dtype, [&](auto atom) {
    with_head_dim(call.head_dim, [&](auto width) {
      using Atom = decltype(atom);
      constexpr int D = decltype(width)::value;
      launch(attention_forward_kernel<Atom, D>, blocks, kThreads, ForwardMemory<Atom, D>::kBytes,
             call.stream, p);
    });
  });
}

}  // namespace pvt_kernels::cuda
