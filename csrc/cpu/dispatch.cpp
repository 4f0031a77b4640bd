#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <stdexcept>

#include "cpu/code_path.h"
#include "cpu/features.h"

namespace pvt_kernels::cpu {
namespace {

struct CodePath {
  decltype(&portable::attention_forward_workspace) attention_forward_workspace;
  decltype(&portable::attention_backward_workspace) attention_backward_workspace;
  decltype(&portable::attention_forward) attention_forward;
  decltype(&portable::attention_backward) attention_backward;
  decltype(&portable::spatial_reduction_forward_workspace) spatial_reduction_forward_workspace;
  decltype(&portable::spatial_reduction_backward_workspace) spatial_reduction_backward_workspace;
  decltype(&portable::spatial_reduction_forward) spatial_reduction_forward;
  decltype(&portable::spatial_reduction_backward) spatial_reduction_backward;
  decltype(&portable::multi_head_attention_forward_workspace)
      multi_head_attention_forward_workspace;
  decltype(&portable::multi_head_attention_backward_workspace)
      multi_head_attention_backward_workspace;
  decltype(&portable::multi_head_attention_forward) multi_head_attention_forward;
  decltype(&portable::multi_head_attention_backward) multi_head_attention_backward;
};

#define PVT_KERNELS_CODE_PATH_TABLE(path)                                                      \
  CodePath {                                                                                   \
    path::attention_forward_workspace, path::attention_backward_workspace,                     \
        path::attention_forward, path::attention_backward,                                     \
        path::spatial_reduction_forward_workspace, path::spatial_reduction_backward_workspace, \
        path::spatial_reduction_forward, path::spatial_reduction_backward,                     \
        path::multi_head_attention_forward_workspace,                                          \
        path::multi_head_attention_backward_workspace, path::multi_head_attention_forward,     \
        path::multi_head_attention_backward                                                    \
  }

const CodePath& code_path(DType dtype) {
  static const std::map<std::string, CodePath> paths = {
      {"portable", PVT_KERNELS_CODE_PATH_TABLE(portable)},
#if defined(__x86_64__)
      {"avx2", PVT_KERNELS_CODE_PATH_TABLE(avx2)},
      {"avx512", PVT_KERNELS_CODE_PATH_TABLE(avx512)},
      {"avx512_bf16", PVT_KERNELS_CODE_PATH_TABLE(avx512_bf16)},
#endif
  };
  const std::string name = capability();
  // avx512_bf16 has kernels for bf16 alone
  return paths.at(name == "avx512_bf16" && dtype != DType::bf16 ? "avx512" : name);
}

}  // namespace

const std::vector<std::string>& capabilities() {
  // asked once: in a virtual machine each cpuid takes tens of microseconds
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found = {"portable"};
#if defined(__x86_64__)
    std::map<std::string, bool> has = cpu_features();
    if (has["avx2"] && has["fma"]) {
      found.push_back("avx2");
      if (has["avx512f"] && has["avx512dq"] && has["avx512bw"] && has["avx512vl"]) {
        found.push_back("avx512");
        if (has["avx512_bf16"]) found.push_back("avx512_bf16");
      }
    }
#endif
    return found;
  }();
  return names;
}

std::string capability() {
  const std::vector<std::string>& names = capabilities();
  const char* forced = std::getenv("PVT_KERNELS_CPU_CAPABILITY");
  if (forced == nullptr || *forced == '\0') return names.back();
  if (std::find(names.begin(), names.end(), forced) != names.end()) return forced;
  std::string message = "PVT_KERNELS_CPU_CAPABILITY must be one of";
  for (const std::string& name : names) message += " " + name;
  throw std::invalid_argument(message + " on this CPU, got " + forced);
}

std::size_t attention_forward_workspace(const AttentionSizes& sizes) {
  return code_path(sizes.dtype).attention_forward_workspace(sizes);
}

std::size_t attention_backward_workspace(const AttentionSizes& sizes) {
  return code_path(sizes.dtype).attention_backward_workspace(sizes);
}

void attention_forward(const AttentionSizes& sizes, Heads q, Heads k, Heads v, Biases biases,
                       void* o, void* result, float* lse, void* workspace) {
  code_path(sizes.dtype).attention_forward(sizes, q, k, v, biases, o, result, lse, workspace);
}

void attention_backward(const AttentionSizes& sizes, Heads d_o, Heads q, Heads k, Heads v,
                        const float* key_bias, Heads o, const float* lse, void* dq, void* dk,
                        void* dv, float* dkey_bias, void* workspace) {
  code_path(sizes.dtype)
      .attention_backward(sizes, d_o, q, k, v, key_bias, o, lse, dq, dk, dv, dkey_bias, workspace);
}

std::size_t spatial_reduction_forward_workspace(const SpatialReductionSizes& sizes) {
  return code_path(sizes.dtype).spatial_reduction_forward_workspace(sizes);
}

std::size_t spatial_reduction_backward_workspace(const SpatialReductionSizes& sizes) {
  return code_path(sizes.dtype).spatial_reduction_backward_workspace(sizes);
}

void spatial_reduction_forward(const SpatialReductionSizes& sizes, Tokens x, const void* weight,
                               const float* bias, const float* norm_weight, const float* norm_bias,
                               void* y, float* normalized, float* rstd, void* workspace) {
  code_path(sizes.dtype)
      .spatial_reduction_forward(sizes, x, weight, bias, norm_weight, norm_bias, y, normalized,
                                 rstd, workspace);
}

void spatial_reduction_backward(const SpatialReductionSizes& sizes, const void* dy, Tokens x,
                                const void* weight, const float* norm_weight,
                                const float* normalized, const float* rstd, void* dx, void* dweight,
                                float* dbias, float* dnorm_weight, float* dnorm_bias,
                                void* workspace) {
  code_path(sizes.dtype)
      .spatial_reduction_backward(sizes, dy, x, weight, norm_weight, normalized, rstd, dx, dweight,
                                  dbias, dnorm_weight, dnorm_bias, workspace);
}

std::size_t multi_head_attention_forward_workspace(const AttentionSizes& sizes) {
  return code_path(sizes.dtype).multi_head_attention_forward_workspace(sizes);
}

std::size_t multi_head_attention_backward_workspace(const AttentionSizes& sizes) {
  return code_path(sizes.dtype).multi_head_attention_backward_workspace(sizes);
}

void multi_head_attention_forward(const MultiHeadAttention& a, void* result, void* o, void* kv,
                                  float* lse, void* workspace) {
  code_path(a.sizes.dtype).multi_head_attention_forward(a, result, o, kv, lse, workspace);
}

void multi_head_attention_backward(const MultiHeadAttention& a, Tokens dresult, const void* o,
                                   const void* kv, const float* lse, void* dx, void* dy,
                                   LinearGradient dq, LinearGradient dkv, LinearGradient dout,
                                   void* workspace) {
  code_path(a.sizes.dtype)
      .multi_head_attention_backward(a, dresult, o, kv, lse, dx, dy, dq, dkv, dout, workspace);
}

}  // namespace pvt_kernels::cpu
