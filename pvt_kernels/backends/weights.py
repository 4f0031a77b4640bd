"""A convolution's weight in the order in which kernels read it."""

from __future__ import annotations

import sys
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from pvt_kernels.backends.tensors import aligned_contiguous

# they bring weights of other values to the same memory without counting a version
_SHARDING = ("torch.distributed.fsdp._fully_shard", "torch.distributed.fsdp", "deepspeed")


class _Kept(NamedTuple):
    weight: weakref.ref[Tensor]
    version: int
    address: int
    strides: tuple[int, ...]
    permuted: Tensor


_kept: dict[tuple[int, tuple[int, ...]], _Kept] = {}


def permuted(weight: Tensor, order: tuple[int, ...], keep: bool) -> Tensor:
    """weight.permute(order), contiguous from a multiple of 16 bytes on; a copy where it is not so.

    With `keep`, in inference, the copy is kept while the weight is the same: the same tensor, at
    the same address, in the same version of PyTorch's counter, which every operation in place
    raises. In training it is not, and what was kept is dropped: there are optimizers that write to
    a weight's memory without PyTorch's knowledge, and every step changes it anyway.
    """
    key = id(weight), order
    if keep:
        kept = _kept.get(key)
        if kept is not None and _is_of(kept, weight):
            return kept.permuted
    elif _kept:
        _kept.pop(key, None)
    copy = aligned_contiguous(weight.permute(order))
    if keep and copy.data_ptr() != weight.data_ptr() and _counts_versions(weight):
        _kept[key] = _Kept(
            weakref.ref(weight, lambda _: _kept.pop(key, None)),
            weight._version,
            weight.data_ptr(),
            weight.stride(),
            copy,
        )
    return copy


def _is_of(kept: _Kept, weight: Tensor) -> bool:
    return (
        kept.weight() is weight
        and not weight.is_inference()
        and kept.version == weight._version
        and kept.address == weight.data_ptr()
        and kept.strides == weight.stride()
        and kept.permuted.dtype == weight.dtype
    )


def _counts_versions(weight: Tensor) -> bool:
    """Whether whatever changes the weight's values changes what is compared.

    Not of parts of a larger buffer, which is written to as a whole, nor of tensors that are made
    for one call, such as the casts of autocast.
    """
    if weight.is_inference() or not weight.is_leaf or not isinstance(weight, torch.nn.Parameter):
        return False
    whole = weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
    return whole and not any(name in sys.modules for name in _SHARDING)
