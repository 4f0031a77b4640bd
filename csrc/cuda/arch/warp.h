#pragma once

namespace pvt_kernels::cuda {

constexpr int kWarpSize = 32;

}  // namespace pvt_kernels::cuda
