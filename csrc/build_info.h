#pragma once

#include <optional>
#include <string>
#include <vector>

namespace pvt_kernels {

struct BuildInfo {
  std::string version;
  std::string interface;  // digest of pvt_kernels/_C/*.pyi, beside which this was compiled
  std::string compiler;
  std::string build_type;
  std::optional<std::string> cuda;          // version of nvcc
  std::vector<std::string> cuda_archs;      // machine code as "sm_80", PTX as "compute_80"
  std::optional<std::string> cuda_missing;  // the reason, exactly when there is no `cuda`
  // 70 where every GPU runs the kernels for compute capability 7.0; none where each runs its own
  std::optional<int> cuda_treat_as_arch;
};

BuildInfo build_info();

}  // namespace pvt_kernels
