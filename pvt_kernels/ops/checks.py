"""Checks of arguments that several ops share. Each names the argument, given and accepted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_rank(op: str, name: str, tensor: Any, form: str) -> None:
    """Check that an argument is a tensor of as many dimensions as `form` has names: "(B, N, C)".

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it has more or fewer dimensions.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {form}, got {type(tensor).__name__}")
    # as many names as dimensions, also in "(C,)"
    if tensor.dim() != form.strip("(,)").count(",") + 1:
        raise ValueError(f"{op}: {name} must have the shape {form}, got {tuple(tensor.shape)}")


def check_shape(op: str, name: str, tensor: Any, form: str, shape: tuple[int, ...]) -> None:
    """Check that an argument is a tensor of the given shape, which `form` spells in names.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it has another shape.
    """
    # first, since it is what every good call comes to
    if isinstance(tensor, Tensor) and tensor.shape == shape:
        return
    check_rank(op, name, tensor, form)
    raise ValueError(
        f"{op}: {name} must have the shape {form} = {shape}, got {tuple(tensor.shape)}"
    )


def check_dtype(op: str, name: str, tensor: Tensor, accepted: tuple[torch.dtype, ...]) -> None:
    """Check that a tensor has one of the accepted dtypes; raises TypeError."""
    if tensor.dtype not in accepted:
        names = " or ".join(str(dtype) for dtype in accepted)
        raise TypeError(f"{op}: {name} must be {names}, got {tensor.dtype}")


def check_device(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Check that a tensor is on another's device; raises ValueError."""
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {name} must be on {like_name}'s device, {like.device}, got {tensor.device}"
        )


def check_like(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Check that a tensor has another's device and dtype.

    Raises:
        ValueError: for another device.
        TypeError: for another dtype.
    """
    check_device(op, name, tensor, like_name, like)
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{op}: {name} must have {like_name}'s dtype, {like.dtype}, got {tensor.dtype}"
        )


def check_size(op: str, name: str, size: int, least: int) -> None:
    """Check that a size is an integer, also one that dynamic shapes made symbolic, and no less.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is below `least`.
    """
    if isinstance(size, (bool, float, str, Tensor)):
        raise TypeError(f"{op}: {name} must be an int, got {size!r}")
    if size < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {size}")


def check_map(op: str, x: Tensor, H: int, W: int, least: int = 1) -> None:
    """Check that x (B, N, C) is a map of H x W tokens, at least `least` in each direction.

    Raises:
        TypeError: if H or W is no integer.
        ValueError: if it is below `least`, or N is not H * W.
    """
    for name, size in (("H", H), ("W", W)):
        check_size(op, name, size, least)
    if x.shape[1] != H * W:
        raise ValueError(f"{op}: x must have N = H*W = {H}*{W} = {H * W} tokens, got {x.shape[1]}")
