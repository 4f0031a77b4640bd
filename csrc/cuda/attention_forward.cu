#include "cuda/attention_forward.cuh"
#include "cuda/family.cuh"

namespace pvt_kernels::cuda {
namespace {

template <class Atom, int D>
PlanParts plan_for(const pvtk_attention& call, const AttentionForward& sizes, bool saves) {
  using Memory = ForwardMemory<Atom, D>;
  using Tiling = typename Memory::Tiling;
  const std::int64_t units = call.batch * call.heads;
  const Kernel<AttentionForward> forward(
      kernel_name<kFamily>("attention_forward", call.dtype, D), attention_forward_kernel<Atom, D>,
      ceil_div(call.queries, Tiling::kRows) * units, Tiling::kThreads, Memory::kBytes);
  PlanParts plan{{"q", "k", "v", "o"}, 0, {}};
  if (saves)
    plan.names.push_back("lse");
  else
    plan.workspace_bytes = units * call.queries * sizeof(float);
  plan.launch = [=](void* const* addresses, void* stream) {
    AttentionForward p = sizes;
    p.q.data = addresses[0];
    p.k.data = addresses[1];
    p.v.data = addresses[2];
    p.o = addresses[3];
    // saved, or in the workspace
    p.lse = static_cast<float*>(addresses[4]);
    forward.launch(p, stream);
  };
  return plan;
}

}  // namespace

template <>
PlanParts plan_attention_forward<kFamily>(const pvtk_attention& call, const AttentionForward& p,
                                          bool saves) {
  return with_atom<kFamily>(call.dtype, [&](auto atom) {
    return with_head_dim(call.head_dim, [&](auto width) {
      return plan_for<decltype(atom), decltype(width)::value>(call, p, saves);
    });
  });
}

}  // namespace pvt_kernels::cuda
