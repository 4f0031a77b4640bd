"""A convolution's weight in the order in which kernels read it."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from pvt_kernels.backends.tensors import aligned_contiguous, current_stream


class _Kept(NamedTuple):
    weight: weakref.ref[Tensor]
    version: int
    address: int
    strides: tuple[int, ...]
    permuted: Tensor


# Of a weight and an order, by the stream on which the copy was written: on another one it may not
# be written yet, and its memory may be somebody's again before it was read.
_kept: dict[tuple[int, tuple[int, ...]], dict[int, _Kept]] = {}


def permuted(weight: Tensor, order: tuple[int, ...], keep: bool) -> Tensor:
    """weight.permute(order), contiguous from a multiple of 16 bytes on; a copy where it is not so.

    With `keep`, in inference, a stream's copy is kept while the weight is the same: the same
    tensor, at the same address, in the same version of PyTorch's counter, which every operation in
    place raises. In training it is not, and what was kept is dropped: there are optimizers that
    write to a weight's memory without PyTorch's knowledge, and every step changes it anyway.
    """
    key = id(weight), order
    if keep and weight.is_cuda and torch.cuda.is_current_stream_capturing():
        # a graph reads the weight at each replay, and memory of its own
        keep = False
    stream = current_stream(weight.device.index) if keep else 0
    if keep:
        streams = _kept.get(key)
        kept = None if streams is None else streams.get(stream)
        if kept is not None and _is_of(kept, weight):
            return kept.permuted
    elif _kept:
        _kept.pop(key, None)
    # its history would keep the weight alive
    copy = aligned_contiguous(weight.detach().permute(order))
    if keep and copy.data_ptr() != weight.data_ptr() and _counts_versions(weight):
        _kept.setdefault(key, {})[stream] = _Kept(
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
    # FSDP and DeepSpeed bring weights of other values to the same memory without counting a version
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    return weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
