"""What every op's cpu.py needs to hand tensors to the C++ kernels."""

from __future__ import annotations

from torch import Tensor


def with_adjacent_channels(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension has stride 1, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def dtype_name(tensor: Tensor) -> str:
    """ "float32", "bfloat16" or "float16", as the kernels call it."""
    return str(tensor.dtype).removeprefix("torch.")
