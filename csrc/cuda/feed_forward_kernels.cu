#include "cuda/family.cuh"
#include "cuda/feed_forward.cuh"

namespace pvt_kernels::cuda {
namespace {

// f(atom, relu) for the dtype and whether a ReLU comes before the convolution.
template <class F>
auto with_variant(const pvtk_hidden& call, F f) {
  return with_atom<kFamily>(call.dtype, [&](auto atom) {
    return call.relu_before_conv ? f(atom, std::true_type{}) : f(atom, std::false_type{});
  });
}

Kernel<Hidden> kernel(const char* name, const pvtk_hidden& call, void (*function)(Hidden),
                      const Hidden& p, int shared_bytes) {
  return {kernel_name<kFamily>(name, call.dtype), function, p.blocks, kThreads, shared_bytes};
}

}  // namespace

template <>
PlanParts plan_hidden_forward<kFamily>(const pvtk_hidden& call, const Hidden& sizes) {
  const auto forward = with_variant(call, [&](auto atom, auto relu) {
    return kernel("hidden_forward", call, hidden_forward_kernel<decltype(atom), relu.value>, sizes,
                  0);
  });
  const auto launch = [=](void* const* addresses, void* stream) {
    Hidden p = sizes;
    p.h = addresses[0];
    p.weight = addresses[1];
    p.bias = addresses[2];
    p.a = addresses[3];
    forward.launch(p, stream);
  };
  return {{"h", "weight", "bias", "a"}, 0, launch};
}

template <>
PlanParts plan_hidden_dc<kFamily>(const pvtk_hidden& call, const Hidden& sizes) {
  const auto plain = [&](auto atom) {
    return kernel("hidden_plain", call, hidden_plain_kernel<decltype(atom)>, sizes, sums_bytes(1));
  };
  const auto convolved = [&](auto atom, auto relu) {
    return kernel("hidden_dc", call, hidden_dc_kernel<decltype(atom), relu.value>, sizes,
                  sums_bytes(kTaps + 1));
  };
  const auto dc =
      call.convolved ? with_variant(call, convolved) : with_atom<kFamily>(call.dtype, plain);
  const bool in_place = !call.convolved;
  const auto launch = [=](void* const* addresses, void* stream) {
    if (in_place && addresses[4] != addresses[0])
      throw Refusal(PVTK_INVALID_ARGUMENT, "without a convolution a must be h");
    Hidden p = sizes;
    p.h = addresses[0];
    p.weight = addresses[1];
    p.bias = addresses[2];
    p.dc = addresses[3];
    p.a = addresses[4];
    p.sums = static_cast<float*>(addresses[5]);
    dc.launch(p, stream);
  };
  return {{"h", "weight", "bias", "dc", "a", "sums"}, 0, launch};
}

template <>
PlanParts plan_hidden_dh<kFamily>(const pvtk_hidden& call, const Hidden& sizes) {
  const auto dh = with_variant(call, [&](auto atom, auto relu) {
    return kernel("hidden_dh", call, hidden_dh_kernel<decltype(atom), relu.value>, sizes,
                  sums_bytes(1));
  });
  const auto launch = [=](void* const* addresses, void* stream) {
    Hidden p = sizes;
    p.dc = addresses[0];
    p.weight = addresses[1];
    p.dh = addresses[2];
    p.sums = static_cast<float*>(addresses[3]);
    dh.launch(p, stream);
  };
  return {{"dc", "weight", "h", "sums"}, 0, launch};
}

}  // namespace pvt_kernels::cuda
