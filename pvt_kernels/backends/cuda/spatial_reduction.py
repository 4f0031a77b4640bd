"""The spatial reduction on NVIDIA GPUs: csrc/cuda/spatial_reduction_forward.cu and _backward.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends.cuda.tensors import aligned, device_and_stream
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name, memory_format

# (C_out, C_in, R, R) -> (R, R, C_in, C_out): rows in the order in which a patch lies in x
BY_PATCH = (2, 3, 1, 0)


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
    matrix = _matrix(weight)
    vectors = [aligned_contiguous(t) for t in (bias, norm_weight, norm_bias)]
    y = x.new_empty(B, M, C)
    normalized = x.new_empty(B, M, C, dtype=torch.float32)
    rstd = x.new_empty(B, M, dtype=torch.float32)
    call = _call(x, H, W, R, norm_weight, eps)
    workspace = x.new_empty(cuda.spatial_reduction_forward_workspace(call), dtype=torch.uint8)
    cuda.spatial_reduction_forward(
        call,
        _tokens(x),
        *(t.data_ptr() for t in (matrix, *vectors, y, normalized, rstd, workspace)),
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
    x = aligned(x)
    dy, normalized, rstd = (aligned_contiguous(t) for t in (dy, normalized, rstd))
    matrix, gamma = _matrix(weight), aligned_contiguous(norm_weight)
    # tokens of no patch stay as they are
    left_over = H % R or W % R
    dx = x.new_zeros(B, N, C) if left_over else x.new_empty(B, N, C)
    dweight = torch.empty_like(weight, memory_format=memory_format(weight))
    dbias, dnorm_weight, dnorm_bias = x.new_empty(C), gamma.new_empty(C), gamma.new_empty(C)
    call = _call(x, H, W, R, gamma, eps=0.0)
    workspace = x.new_empty(cuda.spatial_reduction_backward_workspace(call), dtype=torch.uint8)
    cuda.spatial_reduction_backward(
        call,
        dy.data_ptr(),
        _tokens(x),
        *(t.data_ptr() for t in (matrix, gamma, normalized, rstd)),
        dx.data_ptr(),
        False,
        weight_gradient(dweight),
        *(t.data_ptr() for t in (dbias, dnorm_weight, dnorm_bias, workspace)),
    )
    return dx, dweight, dbias, dnorm_weight, dnorm_bias


def weight_gradient(dweight: Tensor) -> cuda.Dweight:
    """(C_out, C_in, R, R), contiguous or channels_last: a patch's pixels are equally far apart."""
    out_stride, in_stride, _, patch_stride = dweight.stride()
    return cuda.Dweight(dweight.data_ptr(), patch_stride, in_stride, out_stride)


def _matrix(weight: Tensor) -> Tensor:
    return aligned_contiguous(weight.permute(BY_PATCH))


def _tokens(x: Tensor) -> cuda.Tokens:
    return cuda.Tokens(x.data_ptr(), *x.stride()[:2])


def _call(
    x: Tensor, H: int, W: int, R: int, norm_weight: Tensor, eps: float
) -> cuda.SpatialReduction:
    device, stream = device_and_stream(x)
    dtypes = dtype_name(x), dtype_name(norm_weight)
    return cuda.SpatialReduction(
        x.shape[0], H, W, x.shape[-1], R, *dtypes, eps, device=device, stream=stream
    )
