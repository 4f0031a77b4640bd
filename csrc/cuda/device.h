#pragma once

#include <optional>
#include <string>
#include <vector>

namespace pvt_kernels {

struct CudaDevice {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int shared_memory_per_block = 0;  // bytes, with opt-in
  // Which of this build's code the device runs: machine code as "sm_80", PTX compiled by the driver
  // as "compute_80".
  std::optional<std::string> code;
  std::optional<std::string> code_missing;  // the reason, exactly when there is no `code`
};

// The visible devices, in the CUDA runtime's order; empty when the driver sees none. Loads code on
// each device, which creates a context there. Throws std::runtime_error when this build has no CUDA
// or the CUDA runtime reports an error, for one because no driver is installed.
std::vector<CudaDevice> cuda_devices();

// One of them; throws std::runtime_error also when there is no such index.
CudaDevice cuda_device(int index);

}  // namespace pvt_kernels
