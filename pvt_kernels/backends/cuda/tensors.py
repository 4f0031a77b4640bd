"""What every op needs to hand tensors to the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels.backends.tensors import current_stream, has_aligned_rows


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself where every row of channels begins at 16 bytes, else a contiguous copy."""
    if has_aligned_rows(tensor, 16 // tensor.element_size()):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def device_and_stream(tensor: Tensor) -> tuple[int, int]:
    """The tensor's device and the address of the stream that PyTorch works on there."""
    device = tensor.device.index
    return device, current_stream(device)
