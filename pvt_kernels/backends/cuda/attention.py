"""Attention on NVIDIA GPUs: csrc/cuda/attention_forward.cu and attention_backward.cu."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends.cuda.tensors import PLANS, aligned, device_index, launch
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name

# batch, queries, keys, heads, head_dim, dtype, scale, device
Sizes = tuple[int, int, int, int, int, str, float, int]
# of batch, tokens, heads
Strides = tuple[int, int, int]


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o and lse, as attention_forward has them."""
    B, N, heads, _ = q.shape
    q, k, v = (aligned(t) for t in (q, k, v))
    o = q.new_empty(q.shape)
    lse = q.new_empty((B, heads, N), dtype=torch.float32)
    plan = forward_plan(_sizes(q, k, scale), *map(_strides, (q, k, v)), saves=True)
    launch(plan, q, k, v, o, lse)
    return o, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    scale: float,
    dkv: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, as attention_backward has them; dk and dv in `dkv` (B, M, 2, heads, d), if given.

    What is given is contiguous.
    """
    do, q, k, v, o = inputs = [aligned(t) for t in (do, q, k, v, o)]
    dq = q.new_empty(q.shape)
    dk, dv = (t.new_empty(t.shape) for t in (k, v)) if dkv is None else dkv.unbind(2)
    dkv_stride = k.shape[2] * k.shape[3] * (1 if dkv is None else 2)
    plan = backward_plan(_sizes(q, k, scale), *map(_strides, inputs), dkv_stride)
    launch(plan, *inputs, aligned_contiguous(lse), dq, dk, dv)
    return dq, dk, dv


@lru_cache(PLANS)
def forward_plan(sizes: Sizes, q: Strides, k: Strides, v: Strides, saves: bool) -> cuda.Plan:
    """Of q, k, v, o and, with `saves`, lse."""
    return cuda.plan_attention_forward(sizes, q, k, v, saves)


@lru_cache(PLANS)
def backward_plan(
    sizes: Sizes,
    do: Strides,
    q: Strides,
    k: Strides,
    v: Strides,
    o: Strides,
    dkv_stride: int,
) -> cuda.Plan:
    """Of do, q, k, v, o, lse, dq, dk, dv."""
    return cuda.plan_attention_backward(sizes, do, q, k, v, o, dkv_stride)


def _sizes(q: Tensor, k: Tensor, scale: float) -> Sizes:
    B, N, heads, d = q.shape
    return B, N, k.shape[1], heads, d, dtype_name(q), scale, device_index(q)


def _strides(t: Tensor) -> Strides:
    return t.stride()[:3]
