"""Attention on the CPU: csrc/cpu/attention_forward.cpp and attention_backward.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cpu
from pvt_kernels.backends.cpu.tensors import address
from pvt_kernels.backends.cpu.tensors import heads as heads_of
from pvt_kernels.backends.tensors import dtype_name, with_adjacent_channels


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o and lse, as attention_forward has them."""
    o = q.new_empty(q.shape)
    return o, run_forward(q, k, v, scale, o=o)


def run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    result_bias: Tensor | None = None,
    o: Tensor | None = None,
    result: Tensor | None = None,
) -> Tensor:
    """Write o = softmax((q k^T + key_bias) * scale) v, and result = o + result_bias; return lse.

    Args:
        q, k, v, scale: as the op `attention` has them.
        key_bias: (B, heads, M), in fp32 and contiguous.
        result_bias: (heads * d,), likewise.
        o, result: to be written, (B, N, heads, d) in q's dtype, contiguous; either may be None.

    Returns:
        lse (B, heads, N) in fp32.
    """
    B, N, heads, _ = q.shape
    q, k, v = (with_adjacent_channels(t) for t in (q, k, v))
    lse = q.new_empty((B, heads, N), dtype=torch.float32)
    cpu.attention_forward(
        _sizes(q, k, scale),
        *map(heads_of, (q, k, v)),
        *map(address, (key_bias, result_bias, o, result, lse)),
    )
    return lse


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, as attention_backward has them."""
    return run_backward(do, q, k, v, o, lse, scale)[:3]


def run_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    scale: float,
    *,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dq, dk, dv, and dkey_bias in fp32 where there is a key_bias: see `run_forward`."""
    do, q, k, v, o = (with_adjacent_channels(t) for t in (do, q, k, v, o))
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    dkey_bias = None if key_bias is None else torch.empty_like(key_bias)
    lse = lse.contiguous()
    cpu.attention_backward(
        _sizes(q, k, scale),
        *map(heads_of, (do, q, k, v)),
        address(key_bias),
        heads_of(o),
        *map(address, (lse, dq, dk, dv, dkey_bias)),
    )
    return dq, dk, dv, dkey_bias


def _sizes(q: Tensor, k: Tensor, scale: float) -> cpu.AttentionSizes:
    B, N, heads, d = q.shape
    return B, N, k.shape[1], heads, d, dtype_name(q), scale, torch.get_num_threads()
