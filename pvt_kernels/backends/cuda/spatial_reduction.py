"""The spatial reduction on NVIDIA GPUs: csrc/cuda/spatial_reduction_forward.cu and _backward.cu."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends.cuda.tensors import PLANS, aligned, device_index, launch
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name, memory_format

# (C_out, C_in, R, R) -> (R, R, C_in, C_out): rows in the order in which a patch lies in x
BY_PATCH = (2, 3, 1, 0)
# batch, height, width, channels, sr_ratio, dtype, norm_dtype, eps, device
Sizes = tuple[int, int, int, int, int, str, str, float, int]
# of batch, tokens
Strides = tuple[int, int]
# of the weight's gradient: of a patch's pixels, c_in, c_out
WeightStrides = tuple[int, int, int]


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
    x = aligned(x)
    vectors = [aligned_contiguous(t) for t in (bias, norm_weight, norm_bias)]
    y = x.new_empty(B, M, C)
    normalized = x.new_empty(B, M, C, dtype=torch.float32)
    rstd = x.new_empty(B, M, dtype=torch.float32)
    plan = forward_plan(_sizes(x, H, W, R, norm_weight, eps), x.stride()[:2], saves=True)
    launch(plan, x, _matrix(weight), *vectors, y, normalized, rstd)
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
    x = aligned(x)
    dy, gamma, normalized, rstd = (
        aligned_contiguous(t) for t in (dy, norm_weight, normalized, rstd)
    )
    # tokens of no patch stay as they are
    left_over = H % R or W % R
    dx = x.new_zeros(B, N, C) if left_over else x.new_empty(B, N, C)
    dweight = torch.empty_like(weight, memory_format=memory_format(weight))
    dbias, dnorm_weight, dnorm_bias = x.new_empty(C), gamma.new_empty(C), gamma.new_empty(C)
    gradients = dx, dweight, dbias, dnorm_weight, dnorm_bias
    sizes = _sizes(x, H, W, R, gamma, eps=0.0)
    plan = backward_plan(sizes, x.stride()[:2], weight_strides(dweight), adds=False)
    launch(plan, dy, x, _matrix(weight), gamma, normalized, rstd, *gradients)
    return gradients


@lru_cache(PLANS)
def forward_plan(sizes: Sizes, x: Strides, saves: bool) -> cuda.Plan:
    """Of x, weight, bias, norm_weight, norm_bias, y and, with `saves`, normalized and rstd."""
    return cuda.plan_spatial_reduction_forward(sizes, x, saves)


@lru_cache(PLANS)
def backward_plan(sizes: Sizes, x: Strides, dweight: WeightStrides, adds: bool) -> cuda.Plan:
    """Of dy, x, weight, norm_weight, normalized, rstd, dx, dweight, dbias, dnorm_weight and
    dnorm_bias."""
    return cuda.plan_spatial_reduction_backward(sizes, x, dweight, adds)


def weight_strides(dweight: Tensor) -> WeightStrides:
    """(C_out, C_in, R, R), contiguous or channels_last: a patch's pixels are equally far apart."""
    out_stride, in_stride, _, patch_stride = dweight.stride()
    return patch_stride, in_stride, out_stride


def _matrix(weight: Tensor) -> Tensor:
    return aligned_contiguous(weight.permute(BY_PATCH))


def _sizes(x: Tensor, H: int, W: int, R: int, norm_weight: Tensor, eps: float) -> Sizes:
    dtypes = dtype_name(x), dtype_name(norm_weight)
    return x.shape[0], H, W, x.shape[-1], R, *dtypes, eps, device_index(x)
