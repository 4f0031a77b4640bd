// From the device to the family of architectures whose kernels it runs.
#pragma once

#include "cuda/runtime.h"

namespace pvt_kernels::cuda {

// f(family) for that of the current device's code; the build defines which there are.
template <class F>
auto with_family(F f) {
  const int arch = code_arch();
#ifdef PVT_KERNELS_CUDA_FAMILY_80
  if (arch >= 80) return f(Constant<80>{});
#endif
#ifdef PVT_KERNELS_CUDA_FAMILY_75
  if (arch >= 75) return f(Constant<75>{});
#endif
#ifdef PVT_KERNELS_CUDA_FAMILY_70
  if (arch >= 70) return f(Constant<70>{});
#endif
  throw std::logic_error("no kernels are for code of compute capability " + std::to_string(arch));
}

}  // namespace pvt_kernels::cuda
