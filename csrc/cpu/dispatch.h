#pragma once

#include <string>
#include <vector>

namespace pvt_kernels::cpu {

// The code paths that this CPU can run, the slowest first: "portable", "avx2", "avx512",
// "avx512_bf16".
const std::vector<std::string>& capabilities();

// The one that runs: the fastest, or what PVT_KERNELS_CPU_CAPABILITY names. Throws
// std::invalid_argument if that names none of capabilities().
std::string capability();

}  // namespace pvt_kernels::cpu
