"""Multi-head attention in Triton: one kernel for narrow layers, else the op attention's.

forward.py has the kernel, and linear_gradients.py one for the weights' gradients of narrow layers;
everything else are PyTorch's matrix products around the attention's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends.tensors import aligned_contiguous
from pvt_kernels.backends.triton import attention
from pvt_kernels.backends.triton.attention.tiles import (
    INTERPRETER_TILE,
    Tile,
    filling,
    matrix_unit,
)
from pvt_kernels.backends.triton.launch import INTERPRETER, Gpu, Launch, gpu_of, run, wide_rows
from pvt_kernels.backends.triton.multi_head_attention import linear_gradients
from pvt_kernels.backends.triton.multi_head_attention.forward import multi_head_attention_launch

# Widths of a layer and of its heads of which all of a query's channels, and one head of them more,
# fit in a block's registers, and fill the block: those of every PVT, PVTv2 and SegFormer up to 64.
# Of 128 channels the kernel has 12.9 instructions a score on an H100, the attention's own 9.9:
# more than the way of q and o to memory and back takes.
FUSED_WIDTHS = ((32, 32), (64, 32), (64, 64))
# {matrix unit: {widths: tiles, the largest first}}: 16 queries a warp, since warps that share
# queries repeat each other's products
FUSED_TILES = {
    "half": {
        (32, 32): (Tile(64, 64, 4, 2, 3),),
        (64, 32): (Tile(64, 64, 4, 2, 2),),
        (64, 64): (Tile(64, 64, 4, 2, 2),),
    },
    "wide half": {
        (32, 32): (Tile(128, 64, 8, 3, 2), Tile(64, 64, 4, 2, 4)),
        (64, 32): (Tile(64, 64, 4, 2, 2),),
        (64, 64): (Tile(128, 64, 8, 3, 2, 128), Tile(64, 64, 4, 2, 3, 168)),
    },
}
FUSED_TILES["tensor memory half"] = FUSED_TILES["wide half"]


def fused_tile(
    gpu: Gpu, dtype: torch.dtype, channels: int, head_dim: int, images: int, queries: int
) -> Tile | None:
    """The fused kernel's tile, or None where the layer is not fused: decided here alone.

    fp32 is not: without tensor cores the factors of three more products would fill the registers.
    """
    if (channels, head_dim) not in FUSED_WIDTHS:
        return None
    if gpu == INTERPRETER:
        return INTERPRETER_TILE
    if dtype == torch.float32:
        return None
    tiles = FUSED_TILES[matrix_unit(gpu, dtype)][channels, head_dim]
    return filling(tiles, gpu, images, queries)


def forward(
    x: Tensor,
    y: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    heads: int,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, o, kv and lse, as multi_head_attention_forward has them."""
    kv = F.linear(y, kv_weight, kv_bias)
    gpu = gpu_of(x)
    B, N, C = x.shape
    tile = fused_tile(gpu, x.dtype, C, C // heads, B, N)
    if tile is not None:
        layers = (q_weight, q_bias, out_weight, out_bias)
        launch, (result, o, lse) = fused_launch(tile, x, kv, *layers, heads, scale, save)
        run(launch)
        return result, o, kv, lse
    q = F.linear(x, q_weight, q_bias).unflatten(2, (heads, -1))
    k, v = kv.unflatten(2, (2, heads, -1)).unbind(2)
    o, lse = attention.forward(q, k, v, scale)
    o = o.flatten(2)
    return F.linear(o, out_weight, out_bias), o if save else x.new_empty(0), kv, lse


def backward(
    dresult: Tensor,
    x: Tensor,
    y: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    out_weight: Tensor,
    o: Tensor,
    kv: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    """The gradients, as multi_head_attention_backward has them. q is computed again."""
    by_head = (lse.shape[1], x.shape[-1] // lse.shape[1])
    q = F.linear(x, q_weight, q_bias).unflatten(2, by_head)
    k, v = kv.unflatten(2, (2, *by_head)).unbind(2)
    do = (dresult @ out_weight).unflatten(2, by_head)
    dq, dkv = attention.packed_backward(do, q, k, v, o.unflatten(2, by_head), lse, scale)
    dq, dkv = dq.flatten(2), dkv.flatten(2)
    layers = [tuple(t.flatten(0, 1) for t in pair) for pair in ((dq, x), (dresult, o))]
    if linear_gradients.pays(gpu_of(x), x.dtype, *layers[0][0].shape[::-1]):
        rows = [tuple(aligned_contiguous(t) for t in pair) for pair in layers]
        launches, (q_layer, out_layer) = linear_gradients.linear_gradients_launches(gpu_of(x), rows)
        run(*launches)
    else:
        q_layer, out_layer = (_layer_gradients(*pair) for pair in layers)
    return (
        dq @ q_weight,
        dkv @ kv_weight,
        *q_layer,
        *_layer_gradients(dkv.flatten(0, 1), y.flatten(0, 1)),
        *out_layer,
    )


def fused_launch(
    tile: Tile,
    x: Tensor,
    kv: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    heads: int,
    scale: float,
    save: bool,
) -> tuple[Launch, tuple[Tensor, Tensor, Tensor]]:
    """What the fused forward launches, and where the result, o and lse will be."""
    B, N, C = x.shape
    result = x.new_empty(B, N, C)
    o = x.new_empty((B, N, C) if save else 0)
    lse = x.new_empty(B, heads, N, dtype=torch.float32)
    layers = (
        None if t is None else aligned_contiguous(t)
        for t in (q_weight, q_bias, out_weight, out_bias)
    )
    launch = multi_head_attention_launch(
        tile, wide_rows(x), aligned_contiguous(kv), *layers, result, o, lse, scale
    )
    return launch, (result, o, lse)


def _layer_gradients(dresult: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Of a linear layer's weight and bias."""
    return dresult.T @ inputs, dresult.sum(0)
