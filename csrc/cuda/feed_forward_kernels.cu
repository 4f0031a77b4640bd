#include "cuda/family.cuh"
#include "cuda/feed_forward.cuh"

namespace pvt_kernels::cuda {
namespace {

// f(atom, relu) for the dtype and whether a ReLU comes before the convolution.
template <class F>
void with_variant(const pvtk_hidden& call, F f) {
  with_atom<kFamily>(call.dtype, [&](auto atom) {
    if (call.relu_before_conv)
      f(atom, std::true_type{});
    else
      f(atom, std::false_type{});
  });
}

}  // namespace

template <>
void launch_hidden_forward<kFamily>(const pvtk_hidden& call, const Hidden& p) {
  with_variant(call, [&](auto atom, auto relu) {
    launch(hidden_forward_kernel<decltype(atom), relu.value>, p.blocks, kThreads, 0, call.stream,
           p);
  });
}

template <>
void launch_hidden_dc<kFamily>(const pvtk_hidden& call, const Hidden& p) {
  if (!call.convolved)
    return with_atom<kFamily>(call.dtype, [&](auto atom) {
      launch(hidden_plain_kernel<decltype(atom)>, p.blocks, kThreads, sums_bytes(1), call.stream,
             p);
    });
  with_variant(call, [&](auto atom, auto relu) {
    launch(hidden_dc_kernel<decltype(atom), relu.value>, p.blocks, kThreads, sums_bytes(kTaps + 1),
           call.stream, p);
  });
}

template <>
void launch_hidden_dh<kFamily>(const pvtk_hidden& call, const Hidden& p) {
  with_variant(call, [&](auto atom, auto relu) {
    launch(hidden_dh_kernel<decltype(atom), relu.value>, p.blocks, kThreads, sums_bytes(1),
           call.stream, p);
  });
}

}  // namespace pvt_kernels::cuda
