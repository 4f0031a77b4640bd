#include "cuda/attention_backward.cuh"
#include "cuda/attention_joint_backward.cuh"
#include "cuda/blocks.h"
#include "cuda/family.cuh"
#include "cuda/fold_launch.cuh"

namespace pvt_kernels::cuda {

template <>
KeyTiling dk_dv_tiling<kFamily>(pvtk_dtype dtype, std::int64_t head_dim) {
  KeyTiling found{};
  with_atom<kFamily>(dtype, [&](auto atom) {
    with_head_dim(head_dim, [&](auto width) {
      using Tiling = typename Config<decltype(atom), decltype(width)::value>::DkDv;
      found = {Tiling::kRows, Tiling::kStep, Tiling::kBlocks, Tiling::kWithDq};
    });
  });
  return found;
}

template <>
void launch_attention_backward<kFamily>(const pvtk_attention& call, const AttentionBackward& p,
                                        void* dk, void* dv, std::int64_t dkv_stride) {
  const std::int64_t batch_heads = call.batch * call.heads;
  const std::int64_t values = batch_heads * call.keys * call.head_dim;
  with_atom<kFamily>(call.dtype, [&](auto atom) {
    using Atom = decltype(atom);
    with_head_dim(call.head_dim, [&](auto width) {
      constexpr int D = decltype(width)::value;
      using DkDv = typename Config<Atom, D>::DkDv;
      const std::int64_t key_blocks = ceil_div(call.keys, DkDv::kRows) * p.splits * batch_heads;
      if constexpr (DkDv::kWithDq) {
        using Memory = JointMemory<Atom, D>;
        const std::int64_t delta_blocks = ceil_div(call.queries, DkDv::kStep) * batch_heads;
        launch(attention_delta_kernel<Atom, D>, delta_blocks, DkDv::kThreads, 0, call.stream, p);
        launch(attention_dq_dk_dv_kernel<Atom, D>, key_blocks, DkDv::kThreads, Memory::kBytes,
               call.stream, p);
      } else {
        using Dq = typename Config<Atom, D>::Dq;
        const std::int64_t query_blocks = ceil_div(call.queries, Dq::kRows) * batch_heads;
        launch(attention_dq_kernel<Atom, D>, query_blocks, Dq::kThreads, DqMemory<Atom, D>::kBytes,
               call.stream, p);
        launch(attention_dk_dv_kernel<Atom, D>, key_blocks, DkDv::kThreads,
               DkDvMemory<Atom, D>::kBytes, call.stream, p);
      }
    });
    // whole tokens of dk and of dv
    const std::int64_t row = call.heads * call.head_dim;
    const Fold fold{p.partials, p.splits, 2, values, {dk, dv}, 1, row, dkv_stride, 0, 1, {}};
    launch_folds<Atom>({fold, {}}, call.stream);
  });
}

}  // namespace pvt_kernels::cuda
