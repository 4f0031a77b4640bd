#include "cpu.h"

#include <pybind11/stl.h>

#include <stdexcept>

#include "cpu/attention.h"
#include "cpu/dispatch.h"
#include "cpu/multi_head_attention.h"
#include "cpu/spatial_reduction.h"

namespace py = pybind11;
using namespace py::literals;
using namespace pvt_kernels::cpu;

namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_named(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got " + name);
}

}  // namespace

void bind_cpu(py::module_ m) {
  m.def("capabilities", &capabilities, "The code paths this CPU can run, the slowest first.");
  m.def("capability", &capability,
        "The code path that runs. Raises ValueError if PVT_KERNELS_CPU_CAPABILITY names none.");

  py::class_<Heads>(m, "Heads", "A (B, N, heads, d) tensor with adjacent channels.")
      .def(py::init([](Address data, std::int64_t batch, std::int64_t token, std::int64_t head) {
             return Heads{pointer<const void>(data), batch, token, head};
           }),
           "data"_a, "batch_stride"_a, "token_stride"_a, "head_stride"_a);

  py::class_<AttentionSizes>(m, "AttentionSizes")
      .def(py::init([](std::int64_t batch, std::int64_t queries, std::int64_t keys,
                       std::int64_t heads, std::int64_t head_dim, const std::string& dtype,
                       float scale, int threads) {
             return AttentionSizes{batch, queries, keys, heads, head_dim, dtype_named(dtype),
                                   scale, threads};
           }),
           "batch"_a, "queries"_a, "keys"_a, "heads"_a, "head_dim"_a, "dtype"_a, "scale"_a,
           "threads"_a);

  m.def("attention_forward_workspace", &attention_forward_workspace, "sizes"_a, "In bytes.");
  m.def("attention_backward_workspace", &attention_backward_workspace, "sizes"_a, "In bytes.");

  m.def(
      "attention_forward",
      [](const AttentionSizes& sizes, const Heads& q, const Heads& k, const Heads& v, Address o,
         Address lse, Address workspace) {
        attention_forward(sizes, q, k, v, pointer<void>(o), pointer<float>(lse),
                          pointer<void>(workspace));
      },
      "sizes"_a, "q"_a, "k"_a, "v"_a, "o"_a, "lse"_a, "workspace"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/attention.h.");

  m.def(
      "attention_backward",
      [](const AttentionSizes& sizes, const Heads& d_o, const Heads& q, const Heads& k,
         const Heads& v, const Heads& o, Address lse, Address dq, Address dk, Address dv,
         Address workspace) {
        attention_backward(sizes, d_o, q, k, v, o, pointer<const float>(lse), pointer<void>(dq),
                           pointer<void>(dk), pointer<void>(dv), pointer<void>(workspace));
      },
      "sizes"_a, "do"_a, "q"_a, "k"_a, "v"_a, "o"_a, "lse"_a, "dq"_a, "dk"_a, "dv"_a, "workspace"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/attention.h.");

  py::class_<Tokens>(m, "Tokens", "A (B, N, C) tensor with adjacent channels.")
      .def(py::init([](Address data, std::int64_t batch, std::int64_t token) {
             return Tokens{pointer<const void>(data), batch, token};
           }),
           "data"_a, "batch_stride"_a, "token_stride"_a);

  py::class_<Linear>(m, "Linear", "A weight (C_out, C_in), and a bias or 0.")
      .def(py::init([](Address weight, Address bias) {
             return Linear{pointer<const void>(weight), pointer<const float>(bias)};
           }),
           "weight"_a, "bias"_a);

  py::class_<LinearGradient>(m, "LinearGradient", "Like Linear, to be written.")
      .def(py::init([](Address weight, Address bias) {
             return LinearGradient{pointer<void>(weight), pointer<float>(bias)};
           }),
           "weight"_a, "bias"_a);

  py::class_<MultiHeadAttention>(m, "MultiHeadAttention", "Its inputs.")
      .def(py::init([](const AttentionSizes& sizes, const Tokens& x, const Tokens& y,
                       const Linear& q, const Linear& kv,
                       const Linear& out) { return MultiHeadAttention{sizes, x, y, q, kv, out}; }),
           "sizes"_a, "x"_a, "y"_a, "q"_a, "kv"_a, "out"_a);

  m.def("multi_head_attention_forward_workspace", &multi_head_attention_forward_workspace,
        "sizes"_a, "In bytes.");
  m.def("multi_head_attention_backward_workspace", &multi_head_attention_backward_workspace,
        "sizes"_a, "In bytes.");

  m.def(
      "multi_head_attention_forward",
      [](const MultiHeadAttention& inputs, Address result, Address o, Address kv, Address lse,
         Address workspace) {
        multi_head_attention_forward(inputs, pointer<void>(result), pointer<void>(o),
                                     pointer<void>(kv), pointer<float>(lse),
                                     pointer<void>(workspace));
      },
      "inputs"_a, "result"_a, "o"_a, "kv"_a, "lse"_a, "workspace"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/multi_head_attention.h.");

  m.def(
      "multi_head_attention_backward",
      [](const MultiHeadAttention& inputs, const Tokens& dresult, Address o, Address kv,
         Address lse, Address dx, Address dy, const LinearGradient& dq, const LinearGradient& dkv,
         const LinearGradient& dout, Address workspace) {
        multi_head_attention_backward(inputs, dresult, pointer<const void>(o),
                                      pointer<const void>(kv), pointer<const float>(lse),
                                      pointer<void>(dx), pointer<void>(dy), dq, dkv, dout,
                                      pointer<void>(workspace));
      },
      "inputs"_a, "dresult"_a, "o"_a, "kv"_a, "lse"_a, "dx"_a, "dy"_a, "dq"_a, "dkv"_a, "dout"_a,
      "workspace"_a, py::call_guard<py::gil_scoped_release>(),
      "See csrc/cpu/multi_head_attention.h.");

  py::class_<SpatialReductionSizes>(m, "SpatialReductionSizes")
      .def(py::init([](std::int64_t batch, std::int64_t height, std::int64_t width,
                       std::int64_t channels, std::int64_t sr_ratio, const std::string& dtype,
                       float eps, int threads) {
             return SpatialReductionSizes{
                 batch, height, width, channels, sr_ratio, dtype_named(dtype), eps, threads};
           }),
           "batch"_a, "height"_a, "width"_a, "channels"_a, "sr_ratio"_a, "dtype"_a, "eps"_a,
           "threads"_a);

  m.def("spatial_reduction_forward_workspace", &spatial_reduction_forward_workspace, "sizes"_a,
        "In bytes.");
  m.def("spatial_reduction_backward_workspace", &spatial_reduction_backward_workspace, "sizes"_a,
        "In bytes.");

  m.def(
      "spatial_reduction_forward",
      [](const SpatialReductionSizes& sizes, const Tokens& x, Address weight, Address bias,
         Address norm_weight, Address norm_bias, Address y, Address normalized, Address rstd,
         Address workspace) {
        spatial_reduction_forward(
            sizes, x, pointer<const void>(weight), pointer<const float>(bias),
            pointer<const float>(norm_weight), pointer<const float>(norm_bias), pointer<void>(y),
            pointer<float>(normalized), pointer<float>(rstd), pointer<void>(workspace));
      },
      "sizes"_a, "x"_a, "weight"_a, "bias"_a, "norm_weight"_a, "norm_bias"_a, "y"_a, "normalized"_a,
      "rstd"_a, "workspace"_a, py::call_guard<py::gil_scoped_release>(),
      "See csrc/cpu/spatial_reduction.h.");

  m.def(
      "spatial_reduction_backward",
      [](const SpatialReductionSizes& sizes, Address dy, const Tokens& x, Address weight,
         Address norm_weight, Address normalized, Address rstd, Address dx, Address dweight,
         Address dbias, Address dnorm_weight, Address dnorm_bias, Address workspace) {
        spatial_reduction_backward(sizes, pointer<const void>(dy), x, pointer<const void>(weight),
                                   pointer<const float>(norm_weight),
                                   pointer<const float>(normalized), pointer<const float>(rstd),
                                   pointer<void>(dx), pointer<void>(dweight), pointer<float>(dbias),
                                   pointer<float>(dnorm_weight), pointer<float>(dnorm_bias),
                                   pointer<void>(workspace));
      },
      "sizes"_a, "dy"_a, "x"_a, "weight"_a, "norm_weight"_a, "normalized"_a, "rstd"_a, "dx"_a,
      "dweight"_a, "dbias"_a, "dnorm_weight"_a, "dnorm_bias"_a, "workspace"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/spatial_reduction.h.");
}
