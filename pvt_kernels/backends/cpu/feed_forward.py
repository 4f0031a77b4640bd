"""The feed-forward network on the CPU: csrc/cpu/feed_forward_forward.cpp and _backward.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cpu
from pvt_kernels.backends.cpu.tensors import address, tokens
from pvt_kernels.backends.tensors import dtype_name, with_adjacent_channels


def forward(
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    relu_before_conv: bool,
) -> Tensor:
    """The result, as feed_forward_forward has it."""
    x = with_adjacent_channels(x)
    layers = _prepared(fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)
    result = x.new_empty(x.shape)
    if dw_weight is None:
        (x,) = _as_one_image(x)
    sizes = _sizes(x, H, W, fc1_weight, dw_weight, activation, relu_before_conv)
    cpu.feed_forward_forward(sizes, tokens(x), *_addresses(*layers), address(result))
    return result


def backward(
    dresult: Tensor,
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    relu_before_conv: bool,
) -> tuple[Tensor, ...]:
    """The gradients, as feed_forward_backward has them."""
    dtype, D = x.dtype, len(fc1_weight)
    dresult, x = with_adjacent_channels(dresult), with_adjacent_channels(x)
    layers = _prepared(fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, None)
    dx, dfc1, dfc2 = (x.new_empty(t.shape) for t in (x, fc1_weight, fc2_weight))
    if dw_weight is None:
        x, dresult = _as_one_image(x, dresult)
    conv = (0,) if dw_weight is None else dw_weight.shape
    dfc1_bias, dconv, dconv_bias = (
        x.new_empty(shape, dtype=torch.float32) for shape in ((D,), conv, conv[:1])
    )
    cpu.feed_forward_backward(
        _sizes(x, H, W, fc1_weight, dw_weight, activation, relu_before_conv),
        *map(tokens, (dresult, x)),
        *_addresses(*layers),
        address(dx),
        (address(dfc1), address(dfc1_bias)),
        (address(dconv), address(dconv_bias)),
        address(dfc2),
    )
    dfc2_bias = dresult.sum((0, 1), dtype=torch.float32)
    dfc1_bias, dconv, dconv_bias, dfc2_bias = (
        t.to(dtype) for t in (dfc1_bias, dconv, dconv_bias, dfc2_bias)
    )
    return dx, dfc1, dfc1_bias, dconv, dconv_bias, dfc2, dfc2_bias


def _as_one_image(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tokens of all images side by side, where strides allow: each image packs the weights."""
    B, N, C = tensors[0].shape
    if B > 1 and all(N == 1 or t.stride(0) == N * t.stride(1) for t in tensors):
        return tuple(t.view(1, B * N, C) for t in tensors)
    return tensors


def _prepared(
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Contiguous, and in fp32 what is less than a matrix."""
    fc1_bias, dw_weight, dw_bias, fc2_bias = (
        None if t is None else t.float().contiguous()
        for t in (fc1_bias, dw_weight, dw_bias, fc2_bias)
    )
    return fc1_weight.contiguous(), fc1_bias, dw_weight, dw_bias, fc2_weight.contiguous(), fc2_bias


def _addresses(*layers: Tensor | None) -> tuple[cpu.Linear, ...]:
    """Of fc1, the convolution and fc2, weights and biases in turn."""
    return tuple((address(w), address(b)) for w, b in zip(layers[::2], layers[1::2], strict=True))


def _sizes(
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    dw_weight: Tensor | None,
    activation: str,
    relu_before_conv: bool,
) -> cpu.FeedForwardSizes:
    B, N, C = x.shape
    convolved = dw_weight is not None
    height, width = (H, W) if convolved else (N, 1)
    sizes = (B, height, width, C, len(fc1_weight), convolved, relu_before_conv)
    return *sizes, activation, dtype_name(x), torch.get_num_threads()
