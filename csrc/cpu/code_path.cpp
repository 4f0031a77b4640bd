// The table of a code path's kernels. Compiled once for each code path.
#include "cpu/code_path.h"

namespace pvt_kernels::cpu::PVT_KERNELS_CODE_PATH {

// each in the source of its name
AttentionWorkspace attention_forward_workspace, attention_backward_workspace;
AttentionForward attention_forward;
AttentionBackward attention_backward;
AttentionWorkspace multi_head_attention_forward_workspace, multi_head_attention_backward_workspace;
MultiHeadAttentionForward multi_head_attention_forward;
MultiHeadAttentionBackward multi_head_attention_backward;
SpatialReductionWorkspace spatial_reduction_forward_workspace, spatial_reduction_backward_workspace;
SpatialReductionForward spatial_reduction_forward;
SpatialReductionBackward spatial_reduction_backward;
FeedForwardWorkspace feed_forward_forward_workspace, feed_forward_backward_workspace;
FeedForwardForward feed_forward_forward;
FeedForwardBackward feed_forward_backward;
PeakRate peak_rate;

const CodePath kernels = {
    attention_forward_workspace,
    attention_backward_workspace,
    attention_forward,
    attention_backward,
    multi_head_attention_forward_workspace,
    multi_head_attention_backward_workspace,
    multi_head_attention_forward,
    multi_head_attention_backward,
    spatial_reduction_forward_workspace,
    spatial_reduction_backward_workspace,
    spatial_reduction_forward,
    spatial_reduction_backward,
    feed_forward_forward_workspace,
    feed_forward_backward_workspace,
    feed_forward_forward,
    feed_forward_backward,
    peak_rate,
};

}  // namespace pvt_kernels::cpu::PVT_KERNELS_CODE_PATH
