"""The CUDA kernels on raw addresses; csrc/cuda/launch.h says what they read and write.

Workspaces are in bytes. Every call releases the GIL and only enqueues work on its stream, the
address of a cudaStream_t. ValueError for arguments that don't fit; RuntimeError if the device or
this build can't run the call, or CUDA reports an error.
"""

class Heads:
    """A (B, N, heads, d) tensor with adjacent channels; strides in elements."""

    def __init__(
        self, data: int, batch_stride: int, token_stride: int, head_stride: int
    ) -> None: ...

class Tokens:
    """A (B, N, C) tensor with adjacent channels; strides in elements."""

    def __init__(self, data: int, batch_stride: int, token_stride: int) -> None: ...

class Dweight:
    """A gradient of the weight (R * R, C_in, C_out); strides in elements."""

    def __init__(self, data: int, patch_stride: int, in_stride: int, out_stride: int) -> None: ...

class Attention:
    """dtype is "float32", "float16" or "bfloat16"; ValueError for another."""

    def __init__(
        self,
        batch: int,
        queries: int,
        keys: int,
        heads: int,
        head_dim: int,
        dtype: str,
        scale: float,
        device: int,
        stream: int,
    ) -> None: ...

class SpatialReduction:
    """dtype is "float32", "float16" or "bfloat16", norm_dtype the same or "float32"; ValueError for
    another."""

    def __init__(
        self,
        batch: int,
        height: int,
        width: int,
        channels: int,
        sr_ratio: int,
        dtype: str,
        norm_dtype: str,
        eps: float,
        device: int,
        stream: int,
    ) -> None: ...

class Hidden:
    """activation is "gelu" or "relu", dtype as above; ValueError for others."""

    def __init__(
        self,
        images: int,
        rows: int,
        width: int,
        before: int,
        after: int,
        above: int,
        below: int,
        hidden: int,
        convolved: bool,
        activation: str,
        relu_before_conv: bool,
        dtype: str,
        device: int,
        stream: int,
    ) -> None: ...

def attention_forward(call: Attention, q: Heads, k: Heads, v: Heads, o: int, lse: int) -> None: ...
def attention_backward_workspace(call: Attention) -> int: ...
def attention_backward(
    call: Attention,
    do: Heads,
    q: Heads,
    k: Heads,
    v: Heads,
    o: Heads,
    lse: int,
    dq: int,
    dk: int,
    dv: int,
    dkv_stride: int,
    workspace: int,
) -> None: ...
def spatial_reduction_forward_workspace(call: SpatialReduction) -> int: ...
def spatial_reduction_backward_workspace(call: SpatialReduction) -> int: ...
def spatial_reduction_forward(
    call: SpatialReduction,
    x: Tokens,
    weight: int,
    bias: int,
    norm_weight: int,
    norm_bias: int,
    y: int,
    normalized: int,
    rstd: int,
    workspace: int,
) -> None: ...
def spatial_reduction_backward(
    call: SpatialReduction,
    dy: int,
    x: Tokens,
    weight: int,
    norm_weight: int,
    normalized: int,
    rstd: int,
    dx: int,
    add: bool,
    dweight: Dweight,
    dbias: int,
    dnorm_weight: int,
    dnorm_bias: int,
    workspace: int,
) -> None: ...
def blocks_on_a_v100(
    attention: Attention, reduction: SpatialReduction | None, multiprocessors: int
) -> dict[str, tuple[int, int]]:
    """Of the kernels with products: blocks of the grid, and those a multiprocessor holds at least.

    Asks no device, and no build with CUDA. ValueError for bfloat16.
    """

def hidden_forward(call: Hidden, h: int, weight: int, bias: int, a: int) -> None: ...
def hidden_parts(call: Hidden) -> int: ...
def hidden_dc(call: Hidden, h: int, weight: int, bias: int, dc: int, a: int, sums: int) -> None: ...
def hidden_dh(call: Hidden, dc: int, weight: int, h: int, sums: int) -> None: ...
