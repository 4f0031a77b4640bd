"""The CPU kernels on raw addresses; csrc/cpu/*.h say what they read and write.

An address of 0 is a tensor that there is none of. Every call releases the GIL, and has scratch
memory of its own or of its thread.
"""

# a (B, N, heads, d) tensor with adjacent channels: address, and strides of B, N, heads in elements
Heads = tuple[int, int, int, int]
# a (B, N, C) tensor with adjacent channels: address, and strides of B, N in elements
Tokens = tuple[int, int, int]
# addresses of a weight (C_out, C_in), and of a bias (C_out) in float32, or of their gradients
Linear = tuple[int, int]
# batch, queries, keys, heads, head_dim, dtype, scale, threads; dtype is "float32", "bfloat16" or
# "float16", ValueError for another
AttentionSizes = tuple[int, int, int, int, int, str, float, int]
# batch, height, width, channels, sr_ratio, dtype, eps, threads
SpatialReductionSizes = tuple[int, int, int, int, int, str, float, int]
# batch, height, width, channels, hidden channels, whether there is a convolution, and a ReLU before
# it, activation ("gelu" or "relu", ValueError for another), dtype, threads
FeedForwardSizes = tuple[int, int, int, int, int, bool, bool, str, str, int]

def capabilities() -> list[str]:
    """The code paths this CPU can run, the slowest first: "portable", "avx2", "avx512",
    "avx512_bf16", "amx_bf16"."""

def capability() -> str:
    """The code path that runs. ValueError if PVT_KERNELS_CPU_CAPABILITY names none."""

def peak_rate(dtype: str, threads: int) -> float:
    """Operations a second of a loop of nothing but the multiply-adds that the code path's products
    of tensors of the dtype are made of, measured in a tenth of a second."""

def attention_forward(
    sizes: AttentionSizes,
    q: Heads,
    k: Heads,
    v: Heads,
    key_bias: int,
    result_bias: int,
    o: int,
    result: int,
    lse: int,
) -> None: ...
def attention_backward(
    sizes: AttentionSizes,
    do: Heads,
    q: Heads,
    k: Heads,
    v: Heads,
    key_bias: int,
    o: Heads,
    lse: int,
    dq: int,
    dk: int,
    dv: int,
    dkey_bias: int,
) -> None: ...
def multi_head_attention_forward(
    sizes: AttentionSizes,
    x: Tokens,
    y: Tokens,
    q: Linear,
    kv: Linear,
    out: Linear,
    result: int,
    o: int,
    to_kv: int,
    lse: int,
) -> None: ...
def multi_head_attention_backward(
    sizes: AttentionSizes,
    dresult: Tokens,
    x: Tokens,
    y: Tokens,
    q: Linear,
    kv: Linear,
    out: Linear,
    o: int,
    from_kv: int,
    lse: int,
    dx: int,
    dy: int,
    dq: Linear,
    dkv: Linear,
    dout: Linear,
) -> None: ...
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
) -> None: ...
def feed_forward_forward(
    sizes: FeedForwardSizes,
    x: Tokens,
    fc1: Linear,
    conv: Linear,
    fc2: Linear,
    result: int,
) -> None: ...
def feed_forward_backward(
    sizes: FeedForwardSizes,
    dresult: Tokens,
    x: Tokens,
    fc1: Linear,
    conv: Linear,
    fc2: Linear,
    dx: int,
    dfc1: Linear,
    dconv: Linear,
    dfc2_weight: int,
) -> None: ...
