#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "cpu/features.h"

namespace pvt_kernels::cpu {
namespace {

struct Capability {
  const char* name;
  const CodePath *kernels, *bf16_kernels;
};

const std::vector<Capability>& found_capabilities() {
  // asked once: in a virtual machine each cpuid takes tens of microseconds
  static const std::vector<Capability> found = [] {
    std::vector<Capability> all = {{"portable", &portable::kernels, &portable::kernels}};
#if defined(__x86_64__) && !defined(PVT_KERNELS_PORTABLE_ALONE)
    std::map<std::string, bool> has = cpu_features();
    if (has["avx2"] && has["fma"]) {
      all.push_back({"avx2", &avx2::kernels, &avx2::kernels});
      if (has["avx512f"] && has["avx512dq"] && has["avx512bw"] && has["avx512vl"]) {
        all.push_back({"avx512", &avx512::kernels, &avx512::kernels});
        // which has kernels for bf16 alone
        if (has["avx512_bf16"]) {
          all.push_back({"avx512_bf16", &avx512::kernels, &avx512_bf16::kernels});
#if !defined(PVT_KERNELS_AMX_STAND_IN)
          if (has["amx_tile"] && has["amx_bf16"] && request_amx())
            all.push_back({"amx_bf16", &avx512::kernels, &amx_bf16::kernels});
#endif
        }
      }
    }
#endif
#if defined(PVT_KERNELS_AMX_STAND_IN)
    all.push_back({"amx_bf16", all.back().kernels, &amx_bf16::kernels});
#endif
    return all;
  }();
  return found;
}

const Capability& chosen_capability() {
  const std::vector<Capability>& found = found_capabilities();
  const char* forced = std::getenv("PVT_KERNELS_CPU_CAPABILITY");
  if (forced == nullptr || *forced == '\0') return found.back();
  for (const Capability& c : found) {
    if (std::strcmp(c.name, forced) == 0) return c;
  }
  std::string message = "PVT_KERNELS_CPU_CAPABILITY must be one of";
  for (const Capability& c : found) message += std::string(" ") + c.name;
  throw std::invalid_argument(message + " on this CPU, got " + forced);
}

}  // namespace

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (const Capability& c : found_capabilities()) names.push_back(c.name);
  return names;
}

std::string capability() { return chosen_capability().name; }

const CodePath& code_path(DType dtype) {
  const Capability& chosen = chosen_capability();
  return dtype == DType::bf16 ? *chosen.bf16_kernels : *chosen.kernels;
}

}  // namespace pvt_kernels::cpu
