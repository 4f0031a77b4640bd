#pragma once

#include <cstdint>

namespace pvt_kernels::cpu {

// What tensors are stored in; all arithmetic is in fp32.
enum class DType { f32, bf16, f16 };

// Channels of a row that kernels read in whole vectors, on every code path.
inline std::int64_t padded_channels(std::int64_t channels) { return (channels + 15) / 16 * 16; }

}  // namespace pvt_kernels::cpu
