"""Plans of the CUDA kernels; csrc/cuda/launch.h has what they compute and the addresses they take.

ValueError for arguments that don't fit; RuntimeError if the device or this build can't run the
call, or CUDA reports an error, which names the kernel.
"""

from collections.abc import Sequence

# of a (B, N, heads, d) tensor with adjacent channels: strides of B, N, heads in elements
HeadStrides = tuple[int, int, int]
# of a (B, N, C) tensor with adjacent channels: strides of B, N in elements
TokenStrides = tuple[int, int]
# of a gradient of the weight (R * R, C_in, C_out), in elements
WeightStrides = tuple[int, int, int]
# batch, queries, keys, heads, head_dim, dtype, scale, device; dtype is "float32", "float16" or
# "bfloat16", ValueError for another
AttentionSizes = tuple[int, int, int, int, int, str, float, int]
# batch, height, width, channels, sr_ratio, dtype, norm_dtype, eps, device
SpatialReductionSizes = tuple[int, int, int, int, int, str, str, float, int]
# images, rows, width, before, after, above, below, hidden channels, whether there is a convolution,
# activation ("gelu" or "relu", ValueError for another), whether a ReLU precedes the convolution,
# dtype, device
HiddenSizes = tuple[int, int, int, int, int, int, int, int, bool, str, bool, str, int]

class Plan:
    """What is launched for calls of some sizes on a device. Threads may share it.

    Attributes:
        workspace: how many bytes of scratch memory a launch needs.
    """

    workspace: int

    def launch(self, stream: int, addresses: Sequence[int]) -> None:
        """Enqueues the kernels on a stream, the address of a cudaStream_t, and releases the GIL.

        The workspace's address is the last one.
        """

def plan_attention_forward(
    sizes: AttentionSizes, q: HeadStrides, k: HeadStrides, v: HeadStrides, saves: bool
) -> Plan: ...
def plan_attention_backward(
    sizes: AttentionSizes,
    do: HeadStrides,
    q: HeadStrides,
    k: HeadStrides,
    v: HeadStrides,
    o: HeadStrides,
    dkv_stride: int,
) -> Plan: ...
def plan_spatial_reduction_forward(
    sizes: SpatialReductionSizes, x: TokenStrides, saves: bool
) -> Plan: ...
def plan_spatial_reduction_backward(
    sizes: SpatialReductionSizes, x: TokenStrides, dweight: WeightStrides, adds: bool
) -> Plan: ...
def plan_hidden_forward(sizes: HiddenSizes) -> Plan: ...
def plan_hidden_dc(sizes: HiddenSizes) -> Plan: ...
def plan_hidden_dh(sizes: HiddenSizes) -> Plan: ...
def hidden_parts(sizes: HiddenSizes) -> int:
    """Of the sums over the window."""

def blocks_on_a_v100(
    attention: AttentionSizes, reduction: SpatialReductionSizes | None, multiprocessors: int
) -> dict[str, tuple[int, int]]:
    """Of the kernels with products: blocks of the grid, and those a multiprocessor holds at least.

    Asks no device, and no build with CUDA. ValueError for bfloat16.
    """
