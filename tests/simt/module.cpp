// The Python module that the tests call: the binding of the CUDA launchers, run by simt.h.
#include <pybind11/pybind11.h>

#include "cuda.h"
#include "simt.h"

namespace py = pybind11;
using namespace py::literals;

PYBIND11_MODULE(simt_cuda, m) {
  bind_cuda(m);
  m.def(
      "configure",
      [](int arch, int multiprocessors, std::size_t shared_memory_per_block, std::uint64_t seed) {
        simt::settings = {arch, multiprocessors, shared_memory_per_block, seed};
        simt::counters = {};
      },
      "arch"_a, "multiprocessors"_a, "shared_memory_per_block"_a, "seed"_a,
      "The device of the calls that follow. Resets the counters.");
  m.def("counters", [] {
    const simt::Counters& c = simt::counters;
    return py::dict("loaded"_a = c.loaded, "stored"_a = c.stored,
                    "bank_conflicts"_a = c.bank_conflicts, "matrices_loaded"_a = c.matrices_loaded);
  });
}
