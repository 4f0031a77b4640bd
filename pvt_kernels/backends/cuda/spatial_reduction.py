"""The spatial reduction on NVIDIA GPUs: csrc/cuda/spatial_reduction_forward.cu and _backward.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends.cuda.tensors import aligned, device_and_stream
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name


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
    vectors = [aligned_contiguous(t.float()) for t in (bias, norm_weight, norm_bias)]
    y = x.new_empty(B, M, C)
    normalized = x.new_empty(B, M, C, dtype=torch.float32)
    rstd = x.new_empty(B, M, dtype=torch.float32)
    call = _call(x, H, W, R, eps)
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
    matrix, gamma = _matrix(weight), aligned_contiguous(norm_weight.float())
    # tokens of no patch stay as they are
    left_over = H % R or W % R
    dx = x.new_zeros(B, N, C) if left_over else x.new_empty(B, N, C)
    dmatrix = torch.empty_like(matrix)
    dbias, dnorm_weight, dnorm_bias = (gamma.new_empty(C) for _ in range(3))
    call = _call(x, H, W, R, eps=0.0)
    workspace = x.new_empty(cuda.spatial_reduction_backward_workspace(call), dtype=torch.uint8)
    cuda.spatial_reduction_backward(
        call,
        dy.data_ptr(),
        _tokens(x),
        *(t.data_ptr() for t in (matrix, gamma, normalized, rstd)),
        *(t.data_ptr() for t in (dx, dmatrix, dbias, dnorm_weight, dnorm_bias, workspace)),
    )
    return (
        dx,
        dmatrix.permute(3, 2, 0, 1).contiguous(),
        dbias.to(weight.dtype),
        dnorm_weight.to(norm_weight.dtype),
        dnorm_bias.to(norm_weight.dtype),
    )


def _matrix(weight: Tensor) -> Tensor:
    """(C_out, C_in, R, R) -> (R, R, C_in, C_out): rows in the order in which a patch lies in x."""
    return aligned_contiguous(weight.permute(2, 3, 1, 0))


def _tokens(x: Tensor) -> cuda.Tokens:
    return cuda.Tokens(x.data_ptr(), *x.stride()[:2])


def _call(x: Tensor, H: int, W: int, R: int, eps: float) -> cuda.SpatialReduction:
    device, stream = device_and_stream(x)
    return cuda.SpatialReduction(
        x.shape[0], H, W, x.shape[-1], R, dtype_name(x), eps, device=device, stream=stream
    )
