#include "cuda.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/blocks.h"
#include "cuda/launch.h"
#include "from_tuple.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using std::int64_t;

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

pvtk_head_strides head_strides(int64_t batch, int64_t token, int64_t head) {
  return {batch, token, head};
}

pvtk_token_strides token_strides(int64_t batch, int64_t token) { return {batch, token}; }

pvtk_weight_strides weight_strides(int64_t patch, int64_t in, int64_t out) {
  return {patch, in, out};
}

pvtk_attention attention(int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                         int64_t head_dim, std::string dtype, float scale, int device) {
  return {batch, queries, keys, heads, head_dim, dtype_named(dtype), scale, device};
}

pvtk_spatial_reduction spatial_reduction(int64_t batch, int64_t height, int64_t width,
                                         int64_t channels, int64_t sr_ratio, std::string dtype,
                                         std::string norm_dtype, float eps, int device) {
  return {batch, height, width, channels, sr_ratio, dtype_named(dtype), dtype_named(norm_dtype),
          eps,   device};
}

pvtk_hidden hidden(int64_t images, int64_t rows, int64_t width, int64_t before, int64_t after,
                   int64_t above, int64_t below, int64_t channels, bool convolved,
                   std::string activation, bool relu_before_conv, std::string dtype, int device) {
  return {images,
          rows,
          width,
          before,
          after,
          above,
          below,
          channels,
          convolved,
          activation_named(activation),
          relu_before_conv,
          dtype_named(dtype),
          device};
}

struct Destroy {
  void operator()(pvtk_plan* plan) const { pvtk_plan_destroy(plan); }
};

struct Plan {
  std::unique_ptr<pvtk_plan, Destroy> plan;
};

// Without the GIL, since the first one on a device creates a context, and loads the kernels.
template <class F>
Plan made(F make) {
  const py::gil_scoped_release release;
  pvtk_plan* plan = nullptr;
  check(make(&plan));
  return {std::unique_ptr<pvtk_plan, Destroy>(plan)};
}

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<pvtk_head_strides> : from_tuple<&head_strides> {};
template <>
struct type_caster<pvtk_token_strides> : from_tuple<&token_strides> {};
template <>
struct type_caster<pvtk_weight_strides> : from_tuple<&weight_strides> {};
template <>
struct type_caster<pvtk_attention> : from_tuple<&attention> {};
template <>
struct type_caster<pvtk_spatial_reduction> : from_tuple<&spatial_reduction> {};
template <>
struct type_caster<pvtk_hidden> : from_tuple<&hidden> {};

}  // namespace pybind11::detail

void bind_cuda(py::module_ m) {
  py::class_<Plan>(m, "Plan", py::module_local(), "See csrc/cuda/launch.h.")
      .def_property_readonly("workspace",
                             [](const Plan& self) { return pvtk_plan_workspace(self.plan.get()); })
      .def(
          "launch",
          [](const Plan& self, std::uintptr_t stream,
             const std::vector<std::uintptr_t>& addresses) {
            check(pvtk_plan_launch(self.plan.get(), reinterpret_cast<void*>(stream),
                                   reinterpret_cast<void* const*>(addresses.data()),
                                   addresses.size()));
          },
          "stream"_a, "addresses"_a, py::call_guard<py::gil_scoped_release>());

  m.def(
      "plan_attention_forward",
      [](const pvtk_attention& call, const pvtk_head_strides& q, const pvtk_head_strides& k,
         const pvtk_head_strides& v, bool saves) {
        return made([&](pvtk_plan** plan) {
          return pvtk_plan_attention_forward(&call, q, k, v, saves, plan);
        });
      },
      "sizes"_a, "q"_a, "k"_a, "v"_a, "saves"_a);

  m.def(
      "plan_attention_backward",
      [](const pvtk_attention& call, const pvtk_head_strides& d_o, const pvtk_head_strides& q,
         const pvtk_head_strides& k, const pvtk_head_strides& v, const pvtk_head_strides& o,
         int64_t dkv_stride) {
        return made([&](pvtk_plan** plan) {
          return pvtk_plan_attention_backward(&call, d_o, q, k, v, o, dkv_stride, plan);
        });
      },
      "sizes"_a, "do"_a, "q"_a, "k"_a, "v"_a, "o"_a, "dkv_stride"_a);

  m.def(
      "plan_spatial_reduction_forward",
      [](const pvtk_spatial_reduction& call, const pvtk_token_strides& x, bool saves) {
        return made([&](pvtk_plan** plan) {
          return pvtk_plan_spatial_reduction_forward(&call, x, saves, plan);
        });
      },
      "sizes"_a, "x"_a, "saves"_a);

  m.def(
      "plan_spatial_reduction_backward",
      [](const pvtk_spatial_reduction& call, const pvtk_token_strides& x,
         const pvtk_weight_strides& dweight, bool adds) {
        return made([&](pvtk_plan** plan) {
          return pvtk_plan_spatial_reduction_backward(&call, x, dweight, adds, plan);
        });
      },
      "sizes"_a, "x"_a, "dweight"_a, "adds"_a);

  const auto def_hidden = [&](const char* name,
                              pvtk_status (*make)(const pvtk_hidden*, pvtk_plan**)) {
    m.def(
        name,
        [make](const pvtk_hidden& call) {
          return made([&](pvtk_plan** plan) { return make(&call, plan); });
        },
        "sizes"_a);
  };
  def_hidden("plan_hidden_forward", &pvtk_plan_hidden_forward);
  def_hidden("plan_hidden_dc", &pvtk_plan_hidden_dc);
  def_hidden("plan_hidden_dh", &pvtk_plan_hidden_dh);

  m.def(
      "hidden_parts",
      [](const pvtk_hidden& call) {
        int64_t parts = 0;
        check(pvtk_hidden_parts(&call, &parts));
        return parts;
      },
      "sizes"_a, py::call_guard<py::gil_scoped_release>());

  m.def(
      "blocks_on_a_v100",
      [](const pvtk_attention& attention, const std::optional<pvtk_spatial_reduction>& reduction,
         int multiprocessors) {
        py::dict found;
        for (const auto& [kernel, blocks, resident] : pvt_kernels::cuda::blocks_on_a_v100(
                 attention, reduction ? &*reduction : nullptr, multiprocessors))
          found[kernel.c_str()] = py::make_tuple(blocks, resident);
        return found;
      },
      "attention"_a, "reduction"_a, "multiprocessors"_a,
      "Of the kernels with products: {kernel: (blocks of the grid, blocks that a multiprocessor "
      "holds at least)}. Asks no device.");
}
