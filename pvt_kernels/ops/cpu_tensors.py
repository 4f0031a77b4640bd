"""What every op's cpu.py needs to hand tensors to the C++ kernels."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from pvt_kernels._C import cpu

# a workspace of up to this size is kept for the thread's next call
KEPT_WORKSPACE_BYTES = 16 * 2**20

_kept = threading.local()


def tokens(t: Tensor) -> cpu.Tokens:
    """(B, N, C) with adjacent channels, as the kernels take it."""
    return cpu.Tokens(t.data_ptr(), *t.stride()[:2])


def workspace(size: int) -> Tensor:
    """Scratch memory of at least `size` bytes for one call of a kernel.

    Small ones are kept: fresh memory costs a page fault every 4 KiB, which takes as long as the
    kernels themselves where images are small.
    """
    if size > KEPT_WORKSPACE_BYTES:
        return torch.empty(size, dtype=torch.uint8)
    kept = getattr(_kept, "workspace", None)
    if kept is None or kept.numel() < size:
        kept = _kept.workspace = torch.empty(size, dtype=torch.uint8)
    return kept
