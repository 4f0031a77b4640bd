// The kernels of one code path, which are compiled once for each, with that path's flags.
#pragma once

#include "cpu/attention.h"
#include "cpu/feed_forward.h"
#include "cpu/multi_head_attention.h"
#include "cpu/peak.h"
#include "cpu/spatial_reduction.h"

namespace pvt_kernels::cpu {

struct CodePath {
  AttentionWorkspace *attention_forward_workspace, *attention_backward_workspace;
  AttentionForward* attention_forward;
  AttentionBackward* attention_backward;

  AttentionWorkspace *multi_head_attention_forward_workspace,
      *multi_head_attention_backward_workspace;
  MultiHeadAttentionForward* multi_head_attention_forward;
  MultiHeadAttentionBackward* multi_head_attention_backward;

  SpatialReductionWorkspace *spatial_reduction_forward_workspace,
      *spatial_reduction_backward_workspace;
  SpatialReductionForward* spatial_reduction_forward;
  SpatialReductionBackward* spatial_reduction_backward;

  FeedForwardWorkspace *feed_forward_forward_workspace, *feed_forward_backward_workspace;
  FeedForwardForward* feed_forward_forward;
  FeedForwardBackward* feed_forward_backward;

  PeakRate* peak_rate;
};

// Of each namespace that PVT_KERNELS_CODE_PATH names.
namespace portable {
extern const CodePath kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const CodePath kernels;
}
namespace avx512 {
extern const CodePath kernels;
}
namespace avx512_bf16 {
extern const CodePath kernels;
}
#endif
#if defined(__x86_64__) || defined(PVT_KERNELS_AMX_STAND_IN)
namespace amx_bf16 {
extern const CodePath kernels;
}
#endif

}  // namespace pvt_kernels::cpu
