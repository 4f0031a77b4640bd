"""The spatial reduction on the CPU: csrc/cpu/spatial_reduction_forward.cpp and _backward.cpp."""

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
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the normalised rows and rstd, as spatial_reduction_forward has them."""
    B, _, C = x.shape
    R = weight.shape[-1]
    M = (H // R) * (W // R)
    x = with_adjacent_channels(x)
    weight = weight.contiguous()
    vectors = [t.float().contiguous() for t in (bias, norm_weight, norm_bias)]
    y = x.new_empty(B, M, C)
    normalized = x.new_empty(B, M, C, dtype=torch.float32)
    rstd = x.new_empty(B, M, dtype=torch.float32)
    cpu.spatial_reduction_forward(
        _sizes(x, H, W, R, eps),
        tokens(x),
        *map(address, (weight, *vectors, y, normalized, rstd)),
    )
    return y, normalized, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    norm_weight: Tensor,
    normalized: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients, as spatial_reduction_backward has them."""
    B, N, C = x.shape
    R = weight.shape[-1]
    x = with_adjacent_channels(x)
    dy, normalized, rstd = (t.contiguous() for t in (dy, normalized, rstd))
    weight, gamma = weight.contiguous(), norm_weight.float().contiguous()
    # tokens of no patch stay as they are
    left_over = H % R or W % R
    dx = x.new_zeros(B, N, C) if left_over else x.new_empty(B, N, C)
    dweight = weight.new_empty(weight.shape)
    dbias, dnorm_weight, dnorm_bias = x.new_empty(3, C, dtype=torch.float32).unbind()
    cpu.spatial_reduction_backward(
        _sizes(x, H, W, R, eps=0.0),
        address(dy),
        tokens(x),
        *map(address, (weight, gamma, normalized, rstd)),
        *map(address, (dx, dweight, dbias, dnorm_weight, dnorm_bias)),
    )
    return (
        dx,
        dweight,
        dbias.to(weight.dtype, copy=True),
        dnorm_weight.to(norm_weight.dtype, copy=True),
        dnorm_bias.to(norm_weight.dtype, copy=True),
    )


def _sizes(x: Tensor, H: int, W: int, R: int, eps: float) -> cpu.SpatialReductionSizes:
    B, _, C = x.shape
    return B, H, W, C, R, dtype_name(x), eps, torch.get_num_threads()
