// What the sources with kernels are compiled for: a family of architectures, by the number of its
// first. From the facts of a call to the instance of a kernel that runs it there.
#pragma once

#include <cstdlib>
#include <string>
#include <type_traits>

#include "cuda/arch/simt.cuh"
#include "cuda/arch/sm70.cuh"
#include "cuda/arch/sm70_wmma.cuh"
#include "cuda/arch/sm75.cuh"
#include "cuda/arch/sm80.cuh"
#include "cuda/runtime.h"

namespace pvt_kernels::cuda {

constexpr int kFamily = PVT_KERNELS_CUDA_FAMILY;
static_assert(kFamily == 70 || kFamily == 75 || kFamily == 80);

// Whether PVT_KERNELS_SM70_WMMA asks for the form that trusts no lane layout.
inline bool wants_wmma() {
  const char* variable = std::getenv("PVT_KERNELS_SM70_WMMA");
  const std::string value = variable ? variable : "";
  require(value.empty() || value == "0" || value == "1",
          "PVT_KERNELS_SM70_WMMA must be 0 or 1, got " + value);
  return value == "1";
}

// f(atom) for the family's matrix-multiply atom for the dtype.
template <int kFamily, class F>
auto with_atom(pvtk_dtype dtype, F f) {
  switch (dtype) {
    case PVTK_FLOAT32:
      if constexpr (kFamily == 70)
        return f(Simt70{});
      else if constexpr (kFamily == 75)
        return f(Simt75{});
      else
        return f(Simt80{});
    case PVTK_FLOAT16:
      if constexpr (kFamily == 70)
        return wants_wmma() ? f(Sm70Wmma{}) : f(Sm70{});
      else if constexpr (kFamily == 75)
        return f(Sm75{});
      else
        return f(Sm80<half>{});
    case PVTK_BFLOAT16:
      if constexpr (kFamily == 80) {
        return f(Sm80<bf16>{});
      } else {
        throw Refusal(PVTK_NOT_SUPPORTED,
                      "bfloat16 needs code for compute capability 8.0 or newer, and this device "
                      "runs code for " +
                          describe_code_arch() + ": use float16 or float32");
      }
  }
  throw Refusal(PVTK_INVALID_ARGUMENT,
                "dtype must be PVTK_FLOAT32, PVTK_FLOAT16 or "
                "PVTK_BFLOAT16, got " +
                    std::to_string(static_cast<int>(dtype)));
}

// "attention_forward<sm80, float16, 64>"; a kernel that is for all widths has none.
template <int kFamily>
std::string kernel_name(const char* kernel, pvtk_dtype dtype, int width = 0) {
  const char* type = dtype == PVTK_FLOAT32   ? "float32"
                     : dtype == PVTK_FLOAT16 ? "float16"
                                             : "bfloat16";
  std::string name = std::string(kernel) + "<sm" + std::to_string(kFamily) + ", " + type;
  if (width > 0) name += ", " + std::to_string(width);
  if (kFamily == 70 && dtype == PVTK_FLOAT16 && wants_wmma()) name += ", wmma";
  return name + ">";
}

// f(width) for the width to which a head's channels are padded.
template <class F>
auto with_head_dim(std::int64_t head_dim, F f) {
  if (head_dim <= 32) return f(Constant<32>{});
  if (head_dim <= 64) return f(Constant<64>{});
  return f(Constant<128>{});
}

}  // namespace pvt_kernels::cuda
