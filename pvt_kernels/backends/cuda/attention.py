"""Attention on NVIDIA GPUs: csrc/cuda/attention_forward.cu and attention_backward.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends.cuda.tensors import aligned, device_and_stream
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o and lse, as attention_forward has them."""
    B, N, heads, _ = q.shape
    q, k, v = (aligned(t) for t in (q, k, v))
    o = q.new_empty(q.shape)
    lse = q.new_empty((B, heads, N), dtype=torch.float32)
    call = _call(q, k, scale)
    cuda.attention_forward(call, *map(_heads, (q, k, v)), o.data_ptr(), lse.data_ptr())
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
    do, q, k, v, o = (aligned(t) for t in (do, q, k, v, o))
    dq = q.new_empty(q.shape)
    dk, dv = (t.new_empty(t.shape) for t in (k, v)) if dkv is None else dkv.unbind(2)
    lse = aligned_contiguous(lse)
    call = _call(q, k, scale)
    workspace = q.new_empty(cuda.attention_backward_workspace(call), dtype=torch.uint8)
    cuda.attention_backward(
        call,
        *map(_heads, (do, q, k, v, o)),
        *(t.data_ptr() for t in (lse, dq, dk, dv)),
        k.shape[2] * k.shape[3] * (1 if dkv is None else 2),
        workspace.data_ptr(),
    )
    return dq, dk, dv


def _heads(t: Tensor) -> cuda.Heads:
    return cuda.Heads(t.data_ptr(), *t.stride()[:3])


def _call(q: Tensor, k: Tensor, scale: float) -> cuda.Attention:
    B, N, heads, d = q.shape
    device, stream = device_and_stream(q)
    return cuda.Attention(
        B, N, k.shape[1], heads, d, dtype_name(q), scale, device=device, stream=stream
    )
