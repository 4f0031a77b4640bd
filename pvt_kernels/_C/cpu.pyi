"""The CPU kernels on raw addresses; csrc/cpu/*.h say what they read and write.

Workspaces are in bytes and 64-byte aligned, and every call releases the GIL.
"""

class Heads:
    """A (B, N, heads, d) tensor with adjacent channels; strides in elements."""

    def __init__(
        self, data: int, batch_stride: int, token_stride: int, head_stride: int
    ) -> None: ...

class Tokens:
    """A (B, N, C) tensor with adjacent channels; strides in elements."""

    def __init__(self, data: int, batch_stride: int, token_stride: int) -> None: ...

class AttentionSizes:
    """dtype is "float32", "bfloat16" or "float16"; ValueError for another."""

    def __init__(
        self,
        batch: int,
        queries: int,
        keys: int,
        heads: int,
        head_dim: int,
        dtype: str,
        scale: float,
        threads: int,
    ) -> None: ...

class Linear:
    """A weight (C_out, C_in), and a bias (C_out) in float32 or 0."""

    def __init__(self, weight: int, bias: int) -> None: ...

class LinearGradient:
    """Like Linear, to be written."""

    def __init__(self, weight: int, bias: int) -> None: ...

class MultiHeadAttention:
    """Its inputs: the tokens x that ask and y that are asked, and three linear layers."""

    def __init__(
        self, sizes: AttentionSizes, x: Tokens, y: Tokens, q: Linear, kv: Linear, out: Linear
    ) -> None: ...

class SpatialReductionSizes:
    """dtype is "float32", "bfloat16" or "float16"; ValueError for another."""

    def __init__(
        self,
        batch: int,
        height: int,
        width: int,
        channels: int,
        sr_ratio: int,
        dtype: str,
        eps: float,
        threads: int,
    ) -> None: ...

def capabilities() -> list[str]:
    """The code paths this CPU can run, the slowest first: "portable", "avx2", "avx512",
    "avx512_bf16"."""

def capability() -> str:
    """The code path that runs. ValueError if PVT_KERNELS_CPU_CAPABILITY names none."""

def attention_forward_workspace(sizes: AttentionSizes) -> int: ...
def attention_backward_workspace(sizes: AttentionSizes) -> int: ...
def attention_forward(
    sizes: AttentionSizes, q: Heads, k: Heads, v: Heads, o: int, lse: int, workspace: int
) -> None: ...
def attention_backward(
    sizes: AttentionSizes,
    do: Heads,
    q: Heads,
    k: Heads,
    v: Heads,
    o: Heads,
    lse: int,
    dq: int,
    dk: int,
    dv: int,
    workspace: int,
) -> None: ...
def spatial_reduction_forward_workspace(sizes: SpatialReductionSizes) -> int: ...
def spatial_reduction_backward_workspace(sizes: SpatialReductionSizes) -> int: ...
def spatial_reduction_forward(
    sizes: SpatialReductionSizes,
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
    sizes: SpatialReductionSizes,
    dy: int,
    x: Tokens,
    weight: int,
    norm_weight: int,
    normalized: int,
    rstd: int,
    dx: int,
    dweight: int,
    dbias: int,
    dnorm_weight: int,
    dnorm_bias: int,
    workspace: int,
) -> None: ...
def multi_head_attention_forward_workspace(sizes: AttentionSizes) -> int: ...
def multi_head_attention_backward_workspace(sizes: AttentionSizes) -> int: ...
def multi_head_attention_forward(
    inputs: MultiHeadAttention, result: int, o: int, kv: int, lse: int, workspace: int
) -> None: ...
def multi_head_attention_backward(
    inputs: MultiHeadAttention,
    dresult: Tokens,
    o: int,
    kv: int,
    lse: int,
    dx: int,
    dy: int,
    dq: LinearGradient,
    dkv: LinearGradient,
    dout: LinearGradient,
    workspace: int,
) -> None: ...
