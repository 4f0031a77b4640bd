#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"
#include "cpu.h"
#include "cpu/features.h"
#include "cuda.h"
#include "cuda/device.h"
#include "driver.h"
#include "modules.h"
#include "splits.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

py::dict build_info() {
  const pvt_kernels::BuildInfo info = pvt_kernels::build_info();
  return py::dict(
      "version"_a = info.version, "interface"_a = info.interface, "compiler"_a = info.compiler,
      "build_type"_a = info.build_type, "cuda"_a = info.cuda, "cuda_archs"_a = info.cuda_archs,
      "cuda_missing"_a = info.cuda_missing, "cuda_treat_as_arch"_a = info.cuda_treat_as_arch);
}

py::dict describe(const pvt_kernels::CudaDevice& device) {
  return py::dict("name"_a = device.name,
                  "compute_capability"_a = py::make_tuple(device.major, device.minor),
                  "multiprocessors"_a = device.multiprocessors,
                  "shared_memory_per_block"_a = device.shared_memory_per_block,
                  "code"_a = device.code, "code_missing"_a = device.code_missing);
}

py::list cuda_devices() {
  std::vector<pvt_kernels::CudaDevice> devices;
  {
    py::gil_scoped_release release;  // creating contexts takes seconds on a large machine
    devices = pvt_kernels::cuda_devices();
  }
  py::list result;
  for (const pvt_kernels::CudaDevice& device : devices) result.append(describe(device));
  return result;
}

py::dict cuda_device(int index) {
  pvt_kernels::CudaDevice device;
  {
    py::gil_scoped_release release;
    device = pvt_kernels::cuda_device(index);
  }
  return describe(device);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of pvt_kernels.";
  m.def("build_info", &build_info,
        "How this module was built: version, interface (the digest of the stubs beside its "
        "sources), compiler, build_type, cuda (nvcc's version or None), cuda_archs (the code it "
        "holds), cuda_missing (None, or why it has no CUDA) and cuda_treat_as_arch (None, or the "
        "architecture whose kernels every GPU runs).");
  m.def("cpu_features", &pvt_kernels::cpu_features,
        "Instruction sets that both this CPU and its operating system support, by the names in "
        "/proc/cpuinfo.");
  m.def("cuda_devices", &cuda_devices,
        "The visible CUDA devices: name, compute_capability, multiprocessors, "
        "shared_memory_per_block (bytes, opt-in), code (which of this build's code it runs, or "
        "None) and code_missing (None, or why it runs none). Creates a context on each device. "
        "Raises RuntimeError when built without CUDA, without a driver, or when the CUDA runtime "
        "reports an error.");
  m.def("cuda_device", &cuda_device, "index"_a,
        "The same of one device, on which alone it creates a context. Raises RuntimeError also "
        "when there is no such device.");
  m.def(
      "splits_of",
      [](std::int64_t wave, std::int64_t blocks, std::int64_t steps, double multiply_adds,
         double numbers, double operations_a_byte) {
        return pvt_kernels::splits_of(
            {wave, blocks, steps, multiply_adds, numbers, operations_a_byte});
      },
      "wave"_a, "blocks"_a, "steps"_a, "multiply_adds"_a, "numbers"_a, "operations_a_byte"_a,
      "See csrc/splits.h.");
  bind_cpu(m.def_submodule("cpu", "The CPU kernels."));
  bind_cuda(m.def_submodule("cuda", "The CUDA kernels."));
  bind_driver(m.def_submodule("driver", "Launches of kernels that were compiled elsewhere."));
  bind_modules(m.def_submodule("modules", "What is asked in every call of a layer."));
}
