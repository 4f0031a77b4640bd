#include "cuda.h"

#include <stdexcept>
#include <string>

#include "cuda/blocks.h"
#include "cuda/launch.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

pvtk_dtype dtype_named(const std::string& name) {
  if (name == "float32") return PVTK_FLOAT32;
  if (name == "float16") return PVTK_FLOAT16;
  if (name == "bfloat16") return PVTK_BFLOAT16;
  throw py::value_error("dtype must be float32, float16 or bfloat16, got " + name);
}

pvtk_activation activation_named(const std::string& name) {
  if (name == "gelu") return PVTK_GELU;
  if (name == "relu") return PVTK_RELU;
  throw py::value_error("activation must be gelu or relu, got " + name);
}

void check(const pvtk_status& status) {
  if (status.code == PVTK_OK) return;
  if (status.code == PVTK_INVALID_ARGUMENT) throw std::invalid_argument(status.message);
  throw std::runtime_error(status.message);
}

}  // namespace

void bind_cuda(py::module_ m) {
  // local, since the C structs are no types of this module alone
  const auto local = py::module_local();
  py::class_<pvtk_heads>(m, "Heads", local, "A (B, N, heads, d) tensor with adjacent channels.")
      .def(py::init([](Address data, std::int64_t batch, std::int64_t token, std::int64_t head) {
             return pvtk_heads{pointer<const void>(data), batch, token, head};
           }),
           "data"_a, "batch_stride"_a, "token_stride"_a, "head_stride"_a);

  py::class_<pvtk_attention>(m, "Attention", local,
                             "The sizes of a call, its device and its stream.")
      .def(py::init([](std::int64_t batch, std::int64_t queries, std::int64_t keys,
                       std::int64_t heads, std::int64_t head_dim, const std::string& dtype,
                       float scale, int device, Address stream) {
             return pvtk_attention{batch, queries,  keys,
                                   heads, head_dim, dtype_named(dtype),
                                   scale, device,   pointer<void>(stream)};
           }),
           "batch"_a, "queries"_a, "keys"_a, "heads"_a, "head_dim"_a, "dtype"_a, "scale"_a,
           "device"_a, "stream"_a);

  m.def(
      "attention_forward",
      [](const pvtk_attention& call, const pvtk_heads& q, const pvtk_heads& k, const pvtk_heads& v,
         Address o, Address lse) {
        check(pvtk_attention_forward(&call, q, k, v, pointer<void>(o), pointer<float>(lse)));
      },
      "call"_a, "q"_a, "k"_a, "v"_a, "o"_a, "lse"_a, py::call_guard<py::gil_scoped_release>(),
      "See csrc/cuda/launch.h.");

  m.def(
      "attention_backward_workspace",
      [](const pvtk_attention& call) {
        size_t bytes = 0;
        check(pvtk_attention_backward_workspace(&call, &bytes));
        return bytes;
      },
      "call"_a, py::call_guard<py::gil_scoped_release>(), "In bytes.");

  m.def(
      "attention_backward",
      [](const pvtk_attention& call, const pvtk_heads& d_o, const pvtk_heads& q,
         const pvtk_heads& k, const pvtk_heads& v, const pvtk_heads& o, Address lse, Address dq,
         Address dk, Address dv, std::int64_t dkv_stride, Address workspace) {
        check(pvtk_attention_backward(&call, d_o, q, k, v, o, pointer<const float>(lse),
                                      pointer<void>(dq), pointer<void>(dk), pointer<void>(dv),
                                      dkv_stride, pointer<void>(workspace)));
      },
      "call"_a, "do"_a, "q"_a, "k"_a, "v"_a, "o"_a, "lse"_a, "dq"_a, "dk"_a, "dv"_a, "dkv_stride"_a,
      "workspace"_a, py::call_guard<py::gil_scoped_release>(), "See csrc/cuda/launch.h.");

  py::class_<pvtk_tokens>(m, "Tokens", local, "A (B, N, C) tensor with adjacent channels.")
      .def(py::init([](Address data, std::int64_t batch, std::int64_t token) {
             return pvtk_tokens{pointer<const void>(data), batch, token};
           }),
           "data"_a, "batch_stride"_a, "token_stride"_a);

  py::class_<pvtk_dweight>(m, "Dweight", local,
                           "A gradient of the weight (R, R, C_in, C_out), by its strides.")
      .def(py::init([](Address data, std::int64_t patch, std::int64_t in, std::int64_t out) {
             return pvtk_dweight{pointer<void>(data), patch, in, out};
           }),
           "data"_a, "patch_stride"_a, "in_stride"_a, "out_stride"_a);

  py::class_<pvtk_spatial_reduction>(m, "SpatialReduction", local,
                                     "The sizes of a call, its device and its stream.")
      .def(py::init([](std::int64_t batch, std::int64_t height, std::int64_t width,
                       std::int64_t channels, std::int64_t sr_ratio, const std::string& dtype,
                       const std::string& norm_dtype, float eps, int device, Address stream) {
             return pvtk_spatial_reduction{batch,
                                           height,
                                           width,
                                           channels,
                                           sr_ratio,
                                           dtype_named(dtype),
                                           dtype_named(norm_dtype),
                                           eps,
                                           device,
                                           pointer<void>(stream)};
           }),
           "batch"_a, "height"_a, "width"_a, "channels"_a, "sr_ratio"_a, "dtype"_a, "norm_dtype"_a,
           "eps"_a, "device"_a, "stream"_a);

  m.def(
      "spatial_reduction_forward_workspace",
      [](const pvtk_spatial_reduction& call) {
        size_t bytes = 0;
        check(pvtk_spatial_reduction_forward_workspace(&call, &bytes));
        return bytes;
      },
      "call"_a, py::call_guard<py::gil_scoped_release>(), "In bytes.");
  m.def(
      "spatial_reduction_backward_workspace",
      [](const pvtk_spatial_reduction& call) {
        size_t bytes = 0;
        check(pvtk_spatial_reduction_backward_workspace(&call, &bytes));
        return bytes;
      },
      "call"_a, py::call_guard<py::gil_scoped_release>(), "In bytes.");

  m.def(
      "spatial_reduction_forward",
      [](const pvtk_spatial_reduction& call, const pvtk_tokens& x, Address weight, Address bias,
         Address norm_weight, Address norm_bias, Address y, Address normalized, Address rstd,
         Address workspace) {
        check(pvtk_spatial_reduction_forward(
            &call, x, pointer<const void>(weight), pointer<const void>(bias),
            pointer<const void>(norm_weight), pointer<const void>(norm_bias), pointer<void>(y),
            pointer<float>(normalized), pointer<float>(rstd), pointer<void>(workspace)));
      },
      "call"_a, "x"_a, "weight"_a, "bias"_a, "norm_weight"_a, "norm_bias"_a, "y"_a, "normalized"_a,
      "rstd"_a, "workspace"_a, py::call_guard<py::gil_scoped_release>(), "See csrc/cuda/launch.h.");

  m.def(
      "spatial_reduction_backward",
      [](const pvtk_spatial_reduction& call, Address dy, const pvtk_tokens& x, Address weight,
         Address norm_weight, Address normalized, Address rstd, Address dx, bool add,
         const pvtk_dweight& dweight, Address dbias, Address dnorm_weight, Address dnorm_bias,
         Address workspace) {
        check(pvtk_spatial_reduction_backward(
            &call, pointer<const void>(dy), x, pointer<const void>(weight),
            pointer<const void>(norm_weight), pointer<const float>(normalized),
            pointer<const float>(rstd), pointer<void>(dx), add, dweight, pointer<void>(dbias),
            pointer<void>(dnorm_weight), pointer<void>(dnorm_bias), pointer<void>(workspace)));
      },
      "call"_a, "dy"_a, "x"_a, "weight"_a, "norm_weight"_a, "normalized"_a, "rstd"_a, "dx"_a,
      "add"_a, "dweight"_a, "dbias"_a, "dnorm_weight"_a, "dnorm_bias"_a, "workspace"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cuda/launch.h.");

  m.def(
      "blocks_on_a_v100",
      [](const pvtk_attention& attention, const pvtk_spatial_reduction* reduction,
         int multiprocessors) {
        py::dict found;
        for (const auto& [kernel, blocks, resident] :
             pvt_kernels::cuda::blocks_on_a_v100(attention, reduction, multiprocessors))
          found[kernel.c_str()] = py::make_tuple(blocks, resident);
        return found;
      },
      "attention"_a, "reduction"_a, "multiprocessors"_a,
      "Of the kernels with products: {kernel: (blocks of the grid, blocks that a multiprocessor "
      "holds at least)}. Asks no device.");

  py::class_<pvtk_hidden>(m, "Hidden", local,
                          "A window of the feed-forward's hidden layer, its device and its stream.")
      .def(py::init([](std::int64_t images, std::int64_t rows, std::int64_t width,
                       std::int64_t before, std::int64_t after, std::int64_t above,
                       std::int64_t below, std::int64_t hidden, bool convolved,
                       const std::string& activation, bool relu_before_conv,
                       const std::string& dtype, int device, Address stream) {
             return pvtk_hidden{images,
                                rows,
                                width,
                                before,
                                after,
                                above,
                                below,
                                hidden,
                                convolved,
                                activation_named(activation),
                                relu_before_conv,
                                dtype_named(dtype),
                                device,
                                pointer<void>(stream)};
           }),
           "images"_a, "rows"_a, "width"_a, "before"_a, "after"_a, "above"_a, "below"_a, "hidden"_a,
           "convolved"_a, "activation"_a, "relu_before_conv"_a, "dtype"_a, "device"_a, "stream"_a);

  m.def(
      "hidden_forward",
      [](const pvtk_hidden& call, Address h, Address weight, Address bias, Address a) {
        check(pvtk_hidden_forward(&call, pointer<const void>(h), pointer<const void>(weight),
                                  pointer<const void>(bias), pointer<void>(a)));
      },
      "call"_a, "h"_a, "weight"_a, "bias"_a, "a"_a, py::call_guard<py::gil_scoped_release>(),
      "See csrc/cuda/launch.h.");

  m.def(
      "hidden_parts",
      [](const pvtk_hidden& call) {
        std::int64_t parts = 0;
        check(pvtk_hidden_parts(&call, &parts));
        return parts;
      },
      "call"_a, py::call_guard<py::gil_scoped_release>(), "Of the sums over the window.");

  m.def(
      "hidden_dc",
      [](const pvtk_hidden& call, Address h, Address weight, Address bias, Address dc, Address a,
         Address sums) {
        check(pvtk_hidden_dc(&call, pointer<const void>(h), pointer<const void>(weight),
                             pointer<const void>(bias), pointer<void>(dc), pointer<void>(a),
                             pointer<float>(sums)));
      },
      "call"_a, "h"_a, "weight"_a, "bias"_a, "dc"_a, "a"_a, "sums"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cuda/launch.h.");

  m.def(
      "hidden_dh",
      [](const pvtk_hidden& call, Address dc, Address weight, Address h, Address sums) {
        check(pvtk_hidden_dh(&call, pointer<const void>(dc), pointer<const void>(weight),
                             pointer<void>(h), pointer<float>(sums)));
      },
      "call"_a, "dc"_a, "weight"_a, "h"_a, "sums"_a, py::call_guard<py::gil_scoped_release>(),
      "See csrc/cuda/launch.h.");
}
