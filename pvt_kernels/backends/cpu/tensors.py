"""What every op needs to hand tensors to the C++ kernels."""

from __future__ import annotations

from torch import Tensor

from pvt_kernels._C import cpu


def address(t: Tensor | None) -> int:
    """Of the first element, or 0."""
    return 0 if t is None else t.data_ptr()


def tokens(t: Tensor) -> cpu.Tokens:
    """(B, N, C) with adjacent channels, as the kernels take it."""
    batch, token, _ = t.stride()
    return t.data_ptr(), batch, token


def heads(t: Tensor) -> cpu.Heads:
    """(B, N, heads, d) with adjacent channels, as the kernels take it."""
    batch, token, head, _ = t.stride()
    return t.data_ptr(), batch, token, head
