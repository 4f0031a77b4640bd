// The Python module that the tests call: the binding of the CUDA launchers, run by simt.h, and what
// the tests ask about the kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda.h"
#include "cuda/arch/simt.cuh"
#include "cuda/arch/sm70.cuh"
#include "cuda/arch/sm70_wmma.cuh"
#include "cuda/arch/sm75.cuh"
#include "cuda/arch/sm80.cuh"
#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_joint_backward.cuh"
#include "cuda/spatial_reduction_backward.cuh"
#include "cuda/spatial_reduction_forward.cuh"
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
  const int results = name.rfind("m8n8k4", 0) == 0 ? 8 : 4;
  Fragments<float> c(simt::kLanes, std::vector<float>(results));
  simt::run_grid(1, simt::kLanes, 0, [&] {
    const int lane = threadIdx.x;
    std::uint32_t a_part[4] = {}, b_part[2] = {};
    std::memcpy(a_part, a[lane].data(), a[lane].size() * sizeof(std::uint16_t));
    std::memcpy(b_part, b[lane].data(), b[lane].size() * sizeof(std::uint16_t));
    float c_part[4] = {}, c_more[4] = {};
    const auto quad_pairs = [&](auto a_by_row, auto b_by_row) {
      ptx::mma_m8n8k4<a_by_row.value, b_by_row.value>(c_part, c_more, {a_part[0], a_part[1]},
                                                      b_part);
    };
    if (name == "m8n8k4_row_row") quad_pairs(std::true_type{}, std::true_type{});
    if (name == "m8n8k4_row_col") quad_pairs(std::true_type{}, std::false_type{});
    if (name == "m8n8k4_col_row") quad_pairs(std::false_type{}, std::true_type{});
    if (name == "m8n8k4_col_col") quad_pairs(std::false_type{}, std::false_type{});
    if (name == "m16n8k8_f16") ptx::mma_m16n8k8(c_part, a_part[0], a_part[1], b_part[0]);
    if (name == "m16n8k16_f16") ptx::mma_m16n8k16_f16(c_part, a_part, b_part[0], b_part[1]);
    if (name == "m16n8k16_bf16") ptx::mma_m16n8k16_bf16(c_part, a_part, b_part[0], b_part[1]);
    std::copy(c_part, c_part + 4, c[lane].begin());
    if (results == 8) std::copy(c_more, c_more + 4, c[lane].begin() + 4);
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

// Two threads access a word of shared memory, one of them storing, and meet in between at
// `meeting`.
void share_a_word(int other, bool other_stores, const std::string& meeting) {
  simt::run_grid(1, 64, sizeof(float), [&] {
    auto* word = reinterpret_cast<float*>(shared_memory);
    const int thread = threadIdx.x;
    const auto access = [&](bool stores) {
      if (stores)
        ptx::store_shared(word, 0.0f);
      else
        ptx::load_shared(word);
    };
    if (thread == 0) access(!other_stores);
    if (meeting == "block") __syncthreads();
    if (meeting == "warp") __syncwarp();
    if (meeting == "shuffle") __shfl_xor_sync(0xffffffff, 0.0f, 1);
    if (thread == other) access(other_stores);
  });
}

// Each lane loads a V, so many words after the last one's.
template <class V>
void load_strided(int stride) {
  simt::run_grid(1, simt::kLanes, 128 * 1024, [&] {
    ptx::load_shared(reinterpret_cast<const V*>(shared_memory + threadIdx.x * stride * 4));
  });
}

void load_with_stride(int bytes, int stride) {
  if (bytes == 4) load_strided<float>(stride);
  if (bytes == 8) load_strided<float2>(stride);
  if (bytes == 16) load_strided<float4>(stride);
}

template <class Atom, int D>
void add_attention(py::dict& blocks, const std::string& atom) {
  const auto add = [&](const char* kernel, int threads, int bytes) {
    blocks[py::make_tuple(kernel, atom, D)] = py::make_tuple(threads, bytes);
  };
  using Tilings = Config<Atom, D>;
  add("attention_forward", Tilings::Forward::kThreads, ForwardMemory<Atom, D>::kBytes);
  if constexpr (Tilings::DkDv::kWithDq) {
    add("attention_dq_dk_dv", Tilings::DkDv::kThreads, JointMemory<Atom, D>::kBytes);
  } else {
    add("attention_dq", Tilings::Dq::kThreads, DqMemory<Atom, D>::kBytes);
    add("attention_dk_dv", Tilings::DkDv::kThreads, DkDvMemory<Atom, D>::kBytes);
  }
}

template <class Atom>
void add_kernels(py::dict& blocks, const std::string& atom) {
  add_attention<Atom, 32>(blocks, atom);
  add_attention<Atom, 64>(blocks, atom);
  add_attention<Atom, 128>(blocks, atom);
  const auto key = [&](const char* kernel) { return py::make_tuple(kernel, atom, py::none()); };
  blocks[key("spatial_reduction_product")] = py::make_tuple(kThreads, ForwardProduct<Atom>::kBytes);
  blocks[key("spatial_reduction_dx")] = py::make_tuple(kThreads, DxProduct<Atom>::kBytes);
  blocks[key("spatial_reduction_dweight")] = py::make_tuple(kThreads, DweightProduct<Atom>::kBytes);
}

py::dict blocks() {
  py::dict blocks;
  add_kernels<Simt70>(blocks, "Simt70");
  add_kernels<Simt75>(blocks, "Simt75");
  add_kernels<Simt80>(blocks, "Simt80");
  add_kernels<Sm70>(blocks, "Sm70");
  add_kernels<Sm70Wmma>(blocks, "Sm70Wmma");
  add_kernels<Sm75>(blocks, "Sm75");
  add_kernels<Sm80<half>>(blocks, "Sm80 half");
  add_kernels<Sm80<bf16>>(blocks, "Sm80 bf16");
  return blocks;
}

}  // namespace

PYBIND11_MODULE(simt_cuda, m) {
  bind_cuda(m);
  m.def(
      "configure",
      [](int arch, int multiprocessors, std::size_t shared_memory_per_block, std::uint64_t seed,
         int failing_launch, bool watch_banks) {
        simt::settings = {arch, multiprocessors, shared_memory_per_block,
                          seed, failing_launch,  watch_banks};
        simt::counters = {};
      },
      "arch"_a, "multiprocessors"_a, "shared_memory_per_block"_a, "seed"_a, "failing_launch"_a,
      "watch_banks"_a, "The device of the calls that follow. Resets the counters.");
  m.def("counters", [] {
    const simt::Counters& c = simt::counters;
    std::vector<std::uint64_t> loaded, stored;
    for (const simt::Traffic& launch : c.launches) {
      loaded.push_back(launch.loaded);
      stored.push_back(launch.stored);
    }
    return py::dict("kernels"_a = c.kernels, "loaded"_a = loaded, "stored"_a = stored,
                    "matrix_conflicts"_a = c.matrix_conflicts,
                    "matrices_loaded"_a = c.matrices_loaded,
                    "shared_accesses"_a = c.shared_accesses, "most_bank_ways"_a = c.most_bank_ways);
  });
  m.def("mma", &mma, "name"_a, "a"_a, "b"_a);
  m.def("load_matrices", &load_matrices, "rows"_a, "transposed"_a);
  m.def("share_a_word", &share_a_word, "other"_a, "other_stores"_a, "meeting"_a);
  m.def("load_with_stride", &load_with_stride, "bytes"_a, "stride"_a);
  m.def(
      "blocks", &blocks,
      "Of the kernels with products: {(kernel, atom, head dim): (threads, bytes of dynamic shared "
      "memory)}.");
}
