#include "cuda/attention_backward.cuh"
#include "cuda/attention_joint_backward.cuh"
#include "cuda/blocks.h"
#include "cuda/family.cuh"
#include "cuda/fold_launch.cuh"

namespace pvt_kernels::cuda {
namespace {

// Of the queries, then of the keys.
using Kernels = std::pair<Kernel<AttentionBackward>, Kernel<AttentionBackward>>;

template <class Atom, int D>
Kernels kernels(const pvtk_attention& call, std::int64_t key_blocks) {
  using DkDv = typename Config<Atom, D>::DkDv;
  const std::int64_t units = call.batch * call.heads;
  const auto kernel = [&](const char* name, auto function, std::int64_t blocks, int threads,
                          int shared_bytes) {
    return Kernel<AttentionBackward>(kernel_name<kFamily>(name, call.dtype, D), function, blocks,
                                     threads, shared_bytes);
  };
  if constexpr (DkDv::kWithDq) {
    return {kernel("attention_delta", attention_delta_kernel<Atom, D>,
                   ceil_div(call.queries, DkDv::kStep) * units, DkDv::kThreads, 0),
            kernel("attention_dq_dk_dv", attention_dq_dk_dv_kernel<Atom, D>, key_blocks,
                   DkDv::kThreads, JointMemory<Atom, D>::kBytes)};
  } else {
    using Dq = typename Config<Atom, D>::Dq;
    return {
        kernel("attention_dq", attention_dq_kernel<Atom, D>,
               ceil_div(call.queries, Dq::kRows) * units, Dq::kThreads, DqMemory<Atom, D>::kBytes),
        kernel("attention_dk_dv", attention_dk_dv_kernel<Atom, D>, key_blocks, DkDv::kThreads,
               DkDvMemory<Atom, D>::kBytes)};
  }
}

template <class Atom, int D>
PlanParts plan_for(const pvtk_attention& call, AttentionBackward sizes, std::int64_t dkv_stride) {
  using DkDv = typename Config<Atom, D>::DkDv;
  const std::int64_t units = call.batch * call.heads;
  const KeyTiling tiling = {DkDv::kRows, DkDv::kStep, DkDv::kBlocks, DkDv::kWithDq};
  const Split split = dk_dv_split(call, tiling, multiprocessors());
  sizes.splits = split.count;
  sizes.steps_per_split = split.steps;
  const std::int64_t key_blocks = ceil_div(call.keys, DkDv::kRows) * split.count * units;
  const std::int64_t values = units * call.keys * call.head_dim;
  const std::int64_t delta_bytes = padded_bytes(units * call.queries * sizeof(float));
  const std::int64_t progress_bytes =
      DkDv::kWithDq ? padded_bytes((1 + key_blocks * JointTiling::kWarps) * sizeof(unsigned)) : 0;
  sizes.progress_words = progress_bytes / sizeof(unsigned);
  const std::int64_t partial_bytes = split.count * 2 * values * sizeof(float);

  const Kernels both = kernels<Atom, D>(call, key_blocks);
  // whole tokens of dk and of dv
  const std::int64_t row = call.heads * call.head_dim;
  const Folds folds{{nullptr, split.count, 2, values, {}, 1, row, dkv_stride, 0, 1, {}}, {}};
  const Kernel<Folds> fold = fold_kernel_for<Atom>(kernel_name<kFamily>("fold", call.dtype), folds);

  const auto launch = [=](void* const* addresses, void* stream) {
    AttentionBackward p = sizes;
    Heads* inputs[] = {&p.d_o, &p.q, &p.k, &p.v, &p.o};
    for (int i = 0; i < 5; ++i) inputs[i]->data = addresses[i];
    p.lse = static_cast<const float*>(addresses[5]);
    p.dq = addresses[6];
    auto* workspace = static_cast<char*>(addresses[9]);
    p.delta = reinterpret_cast<float*>(workspace);
    p.progress = reinterpret_cast<unsigned*>(workspace + delta_bytes);
    p.partials = reinterpret_cast<float*>(workspace + delta_bytes + progress_bytes);
    both.first.launch(p, stream);
    both.second.launch(p, stream);
    Folds sums = folds;
    sums.first.partials = p.partials;
    sums.first.out[0] = addresses[7];
    sums.first.out[1] = addresses[8];
    fold.launch(sums, stream);
  };
  return {{"do", "q", "k", "v", "o", "lse", "dq", "dk", "dv"},
          delta_bytes + progress_bytes + partial_bytes,
          launch};
}

}  // namespace

template <>
PlanParts plan_attention_backward<kFamily>(const pvtk_attention& call, const AttentionBackward& p,
                                           std::int64_t dkv_stride) {
  return with_atom<kFamily>(call.dtype, [&](auto atom) {
    return with_head_dim(call.head_dim, [&](auto width) {
      return plan_for<decltype(atom), decltype(width)::value>(call, p, dkv_stride);
    });
  });
}

}  // namespace pvt_kernels::cuda
