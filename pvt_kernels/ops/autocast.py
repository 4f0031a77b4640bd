"""Autocast for the ops: inputs are cast once at the op's door, and nothing is cast inside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def is_enabled(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    # shapes alone have no autocast; asking raises
    return tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)


def cast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors in autocast's dtype where it is on for the first's device; fp64 stays as it is.

    The same rule as PyTorch's own for matrix products and convolutions. None stays None.
    """
    if not is_enabled(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(t.to(dtype) if _is_cast(t) else t for t in tensors)


def suspended(tensor: Tensor) -> AbstractContextManager[object]:
    """Within it a kernel's own PyTorch calls keep the dtypes that it gives them."""
    if not is_enabled(tensor):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def _is_cast(tensor: Tensor) -> bool:
    # what is no tensor is the op's check to report
    return (
        isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
    )
