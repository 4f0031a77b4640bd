#include "cuda/attention_forward.cuh"
#include "cuda/family.cuh"

namespace pvt_kernels::cuda {

template <>
void launch_attention_forward<kFamily>(const pvtk_attention& call, const AttentionForward& p) {
  with_atom<kFamily>(call.dtype, [&](auto atom) {
    with_head_dim(call.head_dim, [&](auto width) {
      using Atom = decltype(atom);
      constexpr int D = decltype(width)::value;
      using Memory = ForwardMemory<Atom, D>;
      using Tiling = typename Memory::Tiling;
      const std::int64_t blocks = ceil_div(call.queries, Tiling::kRows) * call.batch * call.heads;
      launch(attention_forward_kernel<Atom, D>, blocks, Tiling::kThreads, Memory::kBytes,
             call.stream, p);
    });
  });
}

}  // namespace pvt_kernels::cuda
