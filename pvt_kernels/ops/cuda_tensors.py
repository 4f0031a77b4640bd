"""What every op's cuda.py needs to hand tensors to the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself where every row of channels begins at 16 bytes, else a contiguous copy."""
    vector = 16 // tensor.element_size()
    rows = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    if (
        tensor.stride(-1) == 1
        and tensor.data_ptr() % 16 == 0
        and all(stride % vector == 0 for size, stride in rows if size > 1)
    ):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself where it is contiguous from a multiple of 16 bytes on, else a copy."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def device_and_stream(tensor: Tensor) -> tuple[int, int]:
    """The tensor's device and the address of the stream that PyTorch works on there."""
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
