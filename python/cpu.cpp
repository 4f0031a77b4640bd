#include "cpu.h"

#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "from_tuple.h"

namespace py = pybind11;
using namespace py::literals;
using namespace pvt_kernels::cpu;

namespace {

using Address = std::uintptr_t;
using std::int64_t;

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

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// Scratch memory for one call of a kernel. Up to a size it is kept for the thread's next call:
// fresh memory costs a page fault every 4 KiB, which takes as long as the kernels themselves where
// images are small.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) {
    constexpr std::size_t kKept = std::size_t{16} << 20;
    thread_local Memory kept;
    thread_local std::size_t kept_bytes = 0;
    if (bytes > kKept) {
      own_ = allocate(bytes);
      data_ = own_.get();
      return;
    }
    if (bytes > kept_bytes) {
      kept.reset();
      kept_bytes = 0;
      kept = allocate(bytes);
      kept_bytes = bytes;
    }
    data_ = kept.get();
  }

  void* data() const { return data_; }

 private:
  using Memory = std::unique_ptr<void, Free>;

  static Memory allocate(std::size_t bytes) {
    return Memory(::operator new(bytes, std::align_val_t(64)));
  }

  Memory own_;
  void* data_;
};

Heads heads(Address data, int64_t batch, int64_t token, int64_t head) {
  return {pointer<const void>(data), batch, token, head};
}

Tokens tokens(Address data, int64_t batch, int64_t token) {
  return {pointer<const void>(data), batch, token};
}

Linear linear(Address weight, Address bias) {
  return {pointer<const void>(weight), pointer<const float>(bias)};
}

LinearGradient linear_gradient(Address weight, Address bias) {
  return {pointer<void>(weight), pointer<float>(bias)};
}

AttentionSizes attention_sizes(int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                               int64_t head_dim, std::string dtype, float scale, int threads) {
  return {batch, queries, keys, heads, head_dim, dtype_named(dtype), scale, threads};
}

SpatialReductionSizes reduction_sizes(int64_t batch, int64_t height, int64_t width,
                                      int64_t channels, int64_t sr_ratio, std::string dtype,
                                      float eps, int threads) {
  return {batch, height, width, channels, sr_ratio, dtype_named(dtype), eps, threads};
}

FeedForwardSizes feed_forward_sizes(int64_t batch, int64_t height, int64_t width, int64_t channels,
                                    int64_t hidden, bool convolved, bool relu_before_conv,
                                    std::string activation, std::string dtype, int threads) {
  if (activation != "gelu" && activation != "relu")
    throw std::invalid_argument("activation must be gelu or relu, got " + activation);
  return {batch,
          height,
          width,
          channels,
          hidden,
          convolved,
          relu_before_conv,
          activation == "gelu" ? Activation::gelu : Activation::relu,
          dtype_named(dtype),
          threads};
}

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<Heads> : from_tuple<&heads> {};
template <>
struct type_caster<Tokens> : from_tuple<&tokens> {};
template <>
struct type_caster<Linear> : from_tuple<&linear> {};
template <>
struct type_caster<LinearGradient> : from_tuple<&linear_gradient> {};
template <>
struct type_caster<AttentionSizes> : from_tuple<&attention_sizes> {};
template <>
struct type_caster<SpatialReductionSizes> : from_tuple<&reduction_sizes> {};
template <>
struct type_caster<FeedForwardSizes> : from_tuple<&feed_forward_sizes> {};

}  // namespace pybind11::detail

void bind_cpu(py::module_ m) {
  m.def("capabilities", &capabilities, "The code paths this CPU can run, the slowest first.");
  m.def("capability", &capability,
        "The code path that runs. Raises ValueError if PVT_KERNELS_CPU_CAPABILITY names none.");
  m.def(
      "peak_rate",
      [](const std::string& dtype, int threads) {
        return code_path(dtype_named(dtype)).peak_rate(threads);
      },
      "dtype"_a, "threads"_a, py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/peak.h.");

  m.def(
      "attention_forward",
      [](const AttentionSizes& sizes, const Heads& q, const Heads& k, const Heads& v,
         Address key_bias, Address result_bias, Address o, Address result, Address lse) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.attention_forward_workspace(sizes));
        kernels.attention_forward(
            sizes, q, k, v, {pointer<const float>(key_bias), pointer<const float>(result_bias)},
            pointer<void>(o), pointer<void>(result), pointer<float>(lse), workspace.data());
      },
      "sizes"_a, "q"_a, "k"_a, "v"_a, "key_bias"_a, "result_bias"_a, "o"_a, "result"_a, "lse"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/attention.h.");

  m.def(
      "attention_backward",
      [](const AttentionSizes& sizes, const Heads& d_o, const Heads& q, const Heads& k,
         const Heads& v, Address key_bias, const Heads& o, Address lse, Address dq, Address dk,
         Address dv, Address dkey_bias) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.attention_backward_workspace(sizes));
        kernels.attention_backward(sizes, d_o, q, k, v, pointer<const float>(key_bias), o,
                                   pointer<const float>(lse), pointer<void>(dq), pointer<void>(dk),
                                   pointer<void>(dv), pointer<float>(dkey_bias), workspace.data());
      },
      "sizes"_a, "do"_a, "q"_a, "k"_a, "v"_a, "key_bias"_a, "o"_a, "lse"_a, "dq"_a, "dk"_a, "dv"_a,
      "dkey_bias"_a, py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/attention.h.");

  m.def(
      "multi_head_attention_forward",
      [](const AttentionSizes& sizes, const Tokens& x, const Tokens& y, const Linear& q,
         const Linear& kv, const Linear& out, Address result, Address o, Address to_kv,
         Address lse) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.multi_head_attention_forward_workspace(sizes));
        kernels.multi_head_attention_forward({sizes, x, y, q, kv, out}, pointer<void>(result),
                                             pointer<void>(o), pointer<void>(to_kv),
                                             pointer<float>(lse), workspace.data());
      },
      "sizes"_a, "x"_a, "y"_a, "q"_a, "kv"_a, "out"_a, "result"_a, "o"_a, "to_kv"_a, "lse"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/multi_head_attention.h.");

  m.def(
      "multi_head_attention_backward",
      [](const AttentionSizes& sizes, const Tokens& dresult, const Tokens& x, const Tokens& y,
         const Linear& q, const Linear& kv, const Linear& out, Address o, Address from_kv,
         Address lse, Address dx, Address dy, const LinearGradient& dq, const LinearGradient& dkv,
         const LinearGradient& dout) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.multi_head_attention_backward_workspace(sizes));
        kernels.multi_head_attention_backward({sizes, x, y, q, kv, out}, dresult,
                                              pointer<const void>(o), pointer<const void>(from_kv),
                                              pointer<const float>(lse), pointer<void>(dx),
                                              pointer<void>(dy), dq, dkv, dout, workspace.data());
      },
      "sizes"_a, "dresult"_a, "x"_a, "y"_a, "q"_a, "kv"_a, "out"_a, "o"_a, "from_kv"_a, "lse"_a,
      "dx"_a, "dy"_a, "dq"_a, "dkv"_a, "dout"_a, py::call_guard<py::gil_scoped_release>(),
      "See csrc/cpu/multi_head_attention.h.");

  m.def(
      "spatial_reduction_forward",
      [](const SpatialReductionSizes& sizes, const Tokens& x, Address weight, Address bias,
         Address norm_weight, Address norm_bias, Address y, Address normalized, Address rstd) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.spatial_reduction_forward_workspace(sizes));
        kernels.spatial_reduction_forward(
            sizes, x, pointer<const void>(weight), pointer<const float>(bias),
            pointer<const float>(norm_weight), pointer<const float>(norm_bias), pointer<void>(y),
            pointer<float>(normalized), pointer<float>(rstd), workspace.data());
      },
      "sizes"_a, "x"_a, "weight"_a, "bias"_a, "norm_weight"_a, "norm_bias"_a, "y"_a, "normalized"_a,
      "rstd"_a, py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/spatial_reduction.h.");

  m.def(
      "spatial_reduction_backward",
      [](const SpatialReductionSizes& sizes, Address dy, const Tokens& x, Address weight,
         Address norm_weight, Address normalized, Address rstd, Address dx, Address dweight,
         Address dbias, Address dnorm_weight, Address dnorm_bias) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.spatial_reduction_backward_workspace(sizes));
        kernels.spatial_reduction_backward(
            sizes, pointer<const void>(dy), x, pointer<const void>(weight),
            pointer<const float>(norm_weight), pointer<const float>(normalized),
            pointer<const float>(rstd), pointer<void>(dx), pointer<void>(dweight),
            pointer<float>(dbias), pointer<float>(dnorm_weight), pointer<float>(dnorm_bias),
            workspace.data());
      },
      "sizes"_a, "dy"_a, "x"_a, "weight"_a, "norm_weight"_a, "normalized"_a, "rstd"_a, "dx"_a,
      "dweight"_a, "dbias"_a, "dnorm_weight"_a, "dnorm_bias"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/spatial_reduction.h.");

  m.def(
      "feed_forward_forward",
      [](const FeedForwardSizes& sizes, const Tokens& x, const Linear& fc1, const Linear& conv,
         const Linear& fc2, Address result) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.feed_forward_forward_workspace(sizes));
        kernels.feed_forward_forward({sizes, x, fc1, conv, fc2}, pointer<void>(result),
                                     workspace.data());
      },
      "sizes"_a, "x"_a, "fc1"_a, "conv"_a, "fc2"_a, "result"_a,
      py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/feed_forward.h.");

  m.def(
      "feed_forward_backward",
      [](const FeedForwardSizes& sizes, const Tokens& dresult, const Tokens& x, const Linear& fc1,
         const Linear& conv, const Linear& fc2, Address dx, const LinearGradient& dfc1,
         const LinearGradient& dconv, Address dfc2_weight) {
        const CodePath& kernels = code_path(sizes.dtype);
        const Workspace workspace(kernels.feed_forward_backward_workspace(sizes));
        kernels.feed_forward_backward({sizes, x, fc1, conv, fc2}, dresult, pointer<void>(dx), dfc1,
                                      dconv, pointer<void>(dfc2_weight), workspace.data());
      },
      "sizes"_a, "dresult"_a, "x"_a, "fc1"_a, "conv"_a, "fc2"_a, "dx"_a, "dfc1"_a, "dconv"_a,
      "dfc2_weight"_a, py::call_guard<py::gil_scoped_release>(), "See csrc/cpu/feed_forward.h.");
}
