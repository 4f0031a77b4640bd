"""What every op needs to hand tensors to the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends.tensors import current_stream, has_aligned_rows

# of each kind: enough for every layer of a model at every size of multi-scale training
PLANS = 1024


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself where every row of channels begins at 16 bytes, else a contiguous copy."""
    if has_aligned_rows(tensor, 16 // tensor.element_size()):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def device_index(tensor: Tensor) -> int:
    """Of the tensor's GPU; 0 on the CPU, where tests run the kernels."""
    return tensor.device.index or 0


def launch(plan: cuda.Plan, *tensors: Tensor | None) -> None:
    """Launch a plan on PyTorch's current stream, with a workspace of its own.

    Of the tensors, in the plan's order, the first is always there.
    """
    first = tensors[0]
    assert first is not None
    workspace = first.new_empty(plan.workspace, dtype=torch.uint8)
    addresses = [0 if t is None else t.data_ptr() for t in (*tensors, workspace)]
    plan.launch(current_stream(first.device.index), addresses)
