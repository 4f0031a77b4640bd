"""Attention in Triton: forward.py, backward_dq.py and backward_dkdv.py have the kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends.tensors import aligned_contiguous
from pvt_kernels.backends.triton.attention.backward_dkdv import attention_dkdv_launch
from pvt_kernels.backends.triton.attention.backward_dq import attention_dq_launch
from pvt_kernels.backends.triton.attention.forward import attention_forward_launch
from pvt_kernels.backends.triton.attention.tiles import Tile, block_d, tile_of
from pvt_kernels.backends.triton.launch import (
    Gpu,
    Launch,
    cdiv,
    fold,
    gpu_of,
    padded,
    run,
    splits_of,
    wide_rows,
)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o and lse, as attention_forward has them."""
    launches, (o, lse) = forward_launches(gpu_of(q), *map(_wide_heads, (q, k, v)), scale)
    run(*launches)
    return _without_padding(o, q.shape[-1]), lse


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, as attention_backward has them."""
    head_dim = q.shape[-1]
    inputs = [_wide_heads(t) for t in (do, q, k, v, o)]
    dk, dv = (k.new_empty(inputs[2].shape) for _ in range(2))
    launches, dq = backward_launches(gpu_of(q), *inputs, lse, dk, dv, scale)
    run(*launches)
    return tuple(_without_padding(t, head_dim) for t in (dq, dk, dv))


def packed_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """dq, and dk and dv in one tensor (B, M, 2, heads, d), as a projection to both needs them."""
    head_dim = q.shape[-1]
    inputs = [_wide_heads(t) for t in (do, q, k, v, o)]
    B, M, *heads = inputs[2].shape
    dkv = k.new_empty(B, M, 2, *heads)
    launches, dq = backward_launches(gpu_of(q), *inputs, lse, *dkv.unbind(2), scale)
    run(*launches)
    return _without_padding(dq, head_dim), _without_padding(dkv, head_dim)


def forward_launches(
    gpu: Gpu, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:
    """What `forward` launches on wide rows, and where o and lse will be."""
    B, N, heads, d = q.shape
    o = q.new_empty(q.shape)
    lse = q.new_empty((B, heads, N), dtype=torch.float32)
    tile = tile_of("forward", gpu, q.dtype, d, B * heads, N)
    return [attention_forward_launch(tile, q, k, v, o, lse, scale)], (o, lse)


def backward_launches(
    gpu: Gpu,
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    dk: Tensor,
    dv: Tensor,
    scale: float,
) -> tuple[list[Launch], Tensor]:
    """What `backward` launches on wide rows to write dk and dv, and where dq will be.

    dk and dv (B, M, heads, d) have the same strides, heads are adjacent, and so are images.
    """
    B, N, heads, d = q.shape
    M = k.shape[1]
    o, lse = aligned_contiguous(o), aligned_contiguous(lse)
    dq = q.new_empty(q.shape)
    dq_tile, dkdv_tile = (
        tile_of(kernel, gpu, q.dtype, d, B * heads, N) for kernel in ("dq", "dkdv")
    )
    splits = dkdv_splits(gpu, dkdv_tile, q, k)
    delta = torch.empty_like(lse)
    partials = q.new_empty((splits, 2, *k.shape), dtype=torch.float32)
    rows = [t.view(B * M, heads * d) for t in (dk, dv)]
    launches = [
        attention_dq_launch(dq_tile, do, q, k, v, o, lse, dq, delta, scale),
        attention_dkdv_launch(dkdv_tile, splits, do, q, k, v, lse, delta, partials, scale),
        fold(gpu, partials.view(splits, 2, B * M, heads * d), rows),
    ]
    return launches, dq


def dkdv_splits(gpu: Gpu, tile: Tile, q: Tensor, k: Tensor) -> int:
    """Into how many parts the queries are split for dk and dv."""
    B, N, heads, d = q.shape
    return splits_of(
        gpu,
        q.dtype,
        tile.resident,
        blocks=cdiv(k.shape[1], tile.keys) * B * heads,
        steps=cdiv(N, tile.queries),
        multiply_adds=4 * tile.queries * tile.keys * block_d(d),
        numbers=2 * k.numel(),
    )


def _wide_heads(tensor: Tensor) -> Tensor:
    """As the kernels take it: a head_dim that is no multiple of UNIT goes on with zeros.

    They change nothing: scores gain zeros, and o, dq, dk and dv end with some.
    """
    head_dim = tensor.shape[-1]
    if head_dim == padded(head_dim):
        return wide_rows(tensor)
    return F.pad(tensor, (0, padded(head_dim) - head_dim))


def _without_padding(tensor: Tensor, head_dim: int) -> Tensor:
    return tensor if tensor.shape[-1] == head_dim else tensor[..., :head_dim].contiguous()
