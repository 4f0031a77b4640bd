"""Attention on the CPU: csrc/cpu/attention_forward.cpp and attention_backward.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cpu
from pvt_kernels.ops.cpu_tensors import workspace
from pvt_kernels.ops.tensors import dtype_name, with_adjacent_channels


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o and lse, as attention_forward in op.py has them."""
    B, N, heads, _ = q.shape
    q, k, v = (with_adjacent_channels(t) for t in (q, k, v))
    o = q.new_empty(q.shape)
    lse = q.new_empty((B, heads, N), dtype=torch.float32)
    sizes = _sizes(q, k, scale)
    scratch = workspace(cpu.attention_forward_workspace(sizes))
    cpu.attention_forward(
        sizes, *map(_heads, (q, k, v)), o.data_ptr(), lse.data_ptr(), scratch.data_ptr()
    )
    return o, lse


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, as attention_backward in op.py has them."""
    do, q, k, v, o = (with_adjacent_channels(t) for t in (do, q, k, v, o))
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    lse = lse.contiguous()
    sizes = _sizes(q, k, scale)
    scratch = workspace(cpu.attention_backward_workspace(sizes))
    cpu.attention_backward(
        sizes,
        *map(_heads, (do, q, k, v, o)),
        *(t.data_ptr() for t in (lse, dq, dk, dv, scratch)),
    )
    return dq, dk, dv


def _heads(t: Tensor) -> cpu.Heads:
    return cpu.Heads(t.data_ptr(), *t.stride()[:3])


def _sizes(q: Tensor, k: Tensor, scale: float) -> cpu.AttentionSizes:
    B, N, heads, d = q.shape
    dtype = dtype_name(q)
    return cpu.AttentionSizes(B, N, k.shape[1], heads, d, dtype, scale, torch.get_num_threads())
