#pragma once

#include <string>
#include <vector>

#include "cpu/code_path.h"

namespace pvt_kernels::cpu {

// The code paths that this CPU can run, the slowest first: "portable", "avx2", "avx512",
// "avx512_bf16", "amx_bf16".
std::vector<std::string> capabilities();

// The one that runs: the fastest, or what PVT_KERNELS_CPU_CAPABILITY names. Throws
// std::invalid_argument if that names none of capabilities().
std::string capability();

// Its kernels for tensors of the dtype. A caller asks once for a kernel and its workspace, which
// belong together: the variable may change, so that one process can run several code paths.
const CodePath& code_path(DType dtype);

}  // namespace pvt_kernels::cpu
