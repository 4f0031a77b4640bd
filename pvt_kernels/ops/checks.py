"""Checks of arguments that several ops share. Each names the argument, given and accepted."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_rank(op: str, name: str, tensor: Tensor, form: str) -> None:
    """`form` spells the accepted shape, one name a dimension: "(B, N, C)"."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {form}, got {type(tensor).__name__}")
    # as many names as dimensions, also in "(C,)"
    if tensor.dim() != form.strip("(,)").count(",") + 1:
        raise ValueError(f"{op}: {name} must have the shape {form}, got {tuple(tensor.shape)}")


def check_shape(op: str, name: str, tensor: Tensor, form: str, shape: tuple[int, ...]) -> None:
    # first, since it is what every good call comes to
    if isinstance(tensor, Tensor) and tensor.shape == shape:
        return
    check_rank(op, name, tensor, form)
    raise ValueError(
        f"{op}: {name} must have the shape {form} = {shape}, got {tuple(tensor.shape)}"
    )


def check_dtype(op: str, name: str, tensor: Tensor, accepted: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in accepted:
        names = " or ".join(str(dtype) for dtype in accepted)
        raise TypeError(f"{op}: {name} must be {names}, got {tensor.dtype}")


def check_device(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {name} must be on {like_name}'s device, {like.device}, got {tensor.device}"
        )


def check_like(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Same device and dtype."""
    check_device(op, name, tensor, like_name, like)
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{op}: {name} must have {like_name}'s dtype, {like.dtype}, got {tensor.dtype}"
        )


def check_size(op: str, name: str, size: int, least: int) -> None:
    if isinstance(size, (bool, float, str, Tensor)):
        raise TypeError(f"{op}: {name} must be an int, got {size!r}")
    if size < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {size}")


def check_map(op: str, x: Tensor, H: int, W: int, least: int = 1) -> None:
    """x (B, N, C) is a map of H x W tokens, at least `least` in each direction."""
    for name, size in (("H", H), ("W", W)):
        check_size(op, name, size, least)
    if x.shape[1] != H * W:
        raise ValueError(f"{op}: x must have N = H*W = {H}*{W} = {H * W} tokens, got {x.shape[1]}")
