// The binding of the CUDA launchers on a runtime that counts launches and does nothing: what
// tests/simt/simt.h runs, ends here. Grids, blocks and shared memory are checked as there.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda.h"
#include "simt.h"

namespace py = pybind11;
using namespace py::literals;

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace pvt_kernels::cuda {
alignas(128) unsigned char shared_memory[256 * 1024];
}  // namespace pvt_kernels::cuda

namespace simt {

// an H100's
Settings settings = {90, 132, 227 * 1024, 0, -1, false};
Counters counters;

// Its address, in no more digits than a string has room for without memory of its own: the loader
// takes longer to find a symbol than a launch does.
std::string symbol_of(void (*kernel)()) {
  return std::to_string(reinterpret_cast<std::uintptr_t>(kernel));
}

void run_grid(unsigned blocks, unsigned threads, std::size_t, const std::function<void()>&) {
  if (blocks == 0) fail("a grid without blocks");
  if (threads == 0 || threads % kLanes != 0 || threads > 1024) fail("a block of an odd size");
}

void fail(const char* message) {
  std::fprintf(stderr, "%s\n", message);
  std::abort();
}

// No kernel runs, so that none of these is called.
void barrier() { fail("a kernel ran"); }
void warp_barrier() { fail("a kernel ran"); }
void access_shared(const void*, int, Access) { fail("a kernel ran"); }
void arrive_in_shared(const void*, int) { fail("a kernel ran"); }
void access_shared_by_warp(const void*, int, Access) { fail("a kernel ran"); }
void collective(void*, void (*)(void* const*)) { fail("a kernel ran"); }

}  // namespace simt

PYBIND11_MODULE(host_cuda, m) {
  bind_cuda(m);
  m.def(
      "reset",
      [](int failing_launch) {
        simt::settings.failing_launch = failing_launch;
        simt::counters = {};
      },
      "failing_launch"_a, "Forget the launches; the one of this number is to fail.");
  m.def(
      "attributes", [] { return simt::counters.attributes; },
      "How often those of the device or of a kernel were asked for or set.");
  m.def(
      "launched",
      [] {
        std::vector<std::string> symbols;
        for (const std::string& address : simt::counters.kernels) {
          Dl_info info = {};
          dladdr(reinterpret_cast<void*>(std::stoull(address)), &info);
          symbols.push_back(info.dli_sname ? info.dli_sname : "");
        }
        return symbols;
      },
      "The kernels' symbols.");
}
