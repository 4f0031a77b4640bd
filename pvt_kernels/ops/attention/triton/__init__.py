"""Attention in Triton: forward.py, backward_dq.py and backward_dkdv.py have the kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pvt_kernels.ops.attention.triton.backward_dkdv import attention_dkdv_launch
from pvt_kernels.ops.attention.triton.backward_dq import attention_dq_launch
from pvt_kernels.ops.attention.triton.forward import attention_forward_launch
from pvt_kernels.ops.attention.triton.tiles import tile_of
from pvt_kernels.ops.tensors import with_adjacent_channels
from pvt_kernels.ops.triton_launch import Gpu, Launch, fold, gpu_of, run, splits_of


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o and lse, as attention_forward in op.py has them."""
    launches, results = forward_launches(gpu_of(q), q, k, v, scale)
    run(*launches)
    return results


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, as attention_backward in op.py has them."""
    launches, results = backward_launches(gpu_of(q), do, q, k, v, o, lse, scale)
    run(*launches)
    return results


def forward_launches(
    gpu: Gpu, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:
    """What `forward` launches, and where its results will be."""
    B, N, heads, d = q.shape
    q, k, v = (with_adjacent_channels(t) for t in (q, k, v))
    o = q.new_empty(q.shape)
    lse = q.new_empty((B, heads, N), dtype=torch.float32)
    tile = tile_of("forward", gpu, q.dtype, d, B * heads, N)
    return [attention_forward_launch(tile, q, k, v, o, lse, scale)], (o, lse)


def backward_launches(
    gpu: Gpu, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """What `backward` launches, and where its results will be."""
    B, N, heads, d = q.shape
    do, q, k, v = (with_adjacent_channels(t) for t in (do, q, k, v))
    o, lse = o.contiguous(), lse.contiguous()
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    dq_tile, dkdv_tile = (
        tile_of(kernel, gpu, q.dtype, d, B * heads, N) for kernel in ("dq", "dkdv")
    )
    splits = splits_of(
        gpu,
        dkdv_tile.resident,
        blocks=triton.cdiv(k.shape[1], dkdv_tile.keys) * B * heads,
        steps=triton.cdiv(N, dkdv_tile.queries),
    )
    delta = torch.empty_like(lse)
    partials = q.new_empty((splits, 2, *k.shape), dtype=torch.float32)
    launches = [
        attention_dq_launch(dq_tile, do, q, k, v, o, lse, dq, delta, scale),
        attention_dkdv_launch(dkdv_tile, splits, do, q, k, v, lse, delta, partials, scale),
        fold(gpu, partials[:, 0], dk),
        fold(gpu, partials[:, 1], dv),
    ]
    return launches, (dq, dk, dv)
