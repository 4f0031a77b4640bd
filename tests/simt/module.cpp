// The Python module that the tests call: the binding of the CUDA launchers, run by simt.h, and what
// the tests ask about the kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda.h"
#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/dispatch.cuh"
#include "cuda/product.cuh"
#include "simt.h"

namespace py = pybind11;
using namespace py::literals;
using namespace pvt_kernels::cuda;

namespace {

template <class T>
using Fragments = std::vector<std::vector<T>>;  // (32 lanes, values)

// One instruction's result for the operands that the lanes hold.
Fragments<float> mma(const std::string& name, const Fragments<std::uint16_t>& a,
                     const Fragments<std::uint16_t>& b) {
  Fragments<float> c(simt::kLanes, std::vector<float>(4));
  simt::run_grid(1, simt::kLanes, 0, [&] {
    const int lane = threadIdx.x;
    std::uint32_t a_part[4] = {}, b_part[2] = {};
    std::memcpy(a_part, a[lane].data(), a[lane].size() * sizeof(std::uint16_t));
    std::memcpy(b_part, b[lane].data(), b[lane].size() * sizeof(std::uint16_t));
    float c_part[4] = {};
    if (name == "m16n8k8_f16") ptx::mma_m16n8k8(c_part, a_part[0], a_part[1], b_part[0]);
    if (name == "m16n8k16_f16") ptx::mma_m16n8k16_f16(c_part, a_part, b_part[0], b_part[1]);
    if (name == "m16n8k16_bf16") ptx::mma_m16n8k16_bf16(c_part, a_part, b_part[0], b_part[1]);
    std::copy(c_part, c_part + 4, c[lane].begin());
  });
  return c;
}

// What ldmatrix deals out of 32 rows of 8 values, of which each lane gives the address of one.
Fragments<std::uint16_t> load_matrices(const std::vector<std::uint16_t>& rows, bool transposed) {
  Fragments<std::uint16_t> values(simt::kLanes, std::vector<std::uint16_t>(8));
  alignas(16) std::uint16_t memory[simt::kLanes * 8];
  std::copy(rows.begin(), rows.end(), memory);
  simt::run_grid(1, simt::kLanes, 0, [&] {
    const int lane = threadIdx.x;
    std::uint32_t part[4];
    if (transposed)
      ptx::load_matrices_transposed(part, memory + lane * 8);
    else
      ptx::load_matrices(part, memory + lane * 8);
    std::memcpy(values[lane].data(), part, sizeof(part));
  });
  return values;
}

template <class Atom, int D>
void add_attention(py::dict& bytes, const std::string& atom) {
  const auto key = [&](const char* kernel) { return py::make_tuple(kernel, atom, D); };
  bytes[key("attention_forward")] = ForwardMemory<Atom, D>::kBytes;
  bytes[key("attention_dq")] = BackwardMemory<Atom, D>::kBytes;
  bytes[key("attention_dk_dv")] = BackwardMemory<Atom, D>::kBytes;
}

template <class Atom>
void add_kernels(py::dict& bytes, const std::string& atom) {
  add_attention<Atom, 32>(bytes, atom);
  add_attention<Atom, 64>(bytes, atom);
  add_attention<Atom, 128>(bytes, atom);
  const auto key = [&](const char* kernel) { return py::make_tuple(kernel, atom, py::none()); };
  bytes[key("reduction_product")] = Product<Atom, Stored::by_row, Stored::by_row>::kBytes;
  bytes[key("reduction_dx")] = Product<Atom, Stored::by_row, Stored::by_column>::kBytes;
  bytes[key("reduction_dweight")] = Product<Atom, Stored::by_column, Stored::by_row>::kBytes;
}

py::dict shared_bytes() {
  py::dict bytes;
  add_kernels<Simt>(bytes, "Simt");
  add_kernels<Sm70>(bytes, "Sm70");
  add_kernels<Sm75>(bytes, "Sm75");
  add_kernels<Sm80<half>>(bytes, "Sm80 half");
  add_kernels<Sm80<bf16>>(bytes, "Sm80 bf16");
  return bytes;
}

}  // namespace

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
  m.def("mma", &mma, "name"_a, "a"_a, "b"_a);
  m.def("load_matrices", &load_matrices, "rows"_a, "transposed"_a);
  m.def("shared_bytes", &shared_bytes,
        "Dynamic shared memory of the kernels with products: {(kernel, atom, head dim): bytes}.");
}
