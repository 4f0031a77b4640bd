"""The spatial reduction in Triton; reference.py has the formulas.

Forward: convolution.py, norm.py. Backward: norm_backward.py, dweight.py, dx.py. The projection to
keys and values is a product of its own: in the norm's kernel it would save a launch and y's way to
memory and back, by benchmarking/model.py 0.3, 1 and 3.5 % of the forward's least time on an H100 in
stages 1, 2 and 3, for a kernel whose every block reads Wkv; and training needs y.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pvt_kernels.ops.spatial_reduction.triton.convolution import convolution_launch
from pvt_kernels.ops.spatial_reduction.triton.dweight import dweight_launch
from pvt_kernels.ops.spatial_reduction.triton.dx import dx_launch
from pvt_kernels.ops.spatial_reduction.triton.norm import norm_launch
from pvt_kernels.ops.spatial_reduction.triton.norm_backward import norm_backward_launch
from pvt_kernels.ops.spatial_reduction.triton.tiles import norm_rows, product_tile
from pvt_kernels.ops.tensors import with_adjacent_channels
from pvt_kernels.ops.triton_launch import Gpu, Launch, fold, gpu_of, run, splits_of


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
    """y, the normalised rows and rstd, as spatial_reduction_forward in op.py has them."""
    launches, results = forward_launches(
        gpu_of(x), x, H, W, weight, bias, norm_weight, norm_bias, eps
    )
    run(*launches)
    return results


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
    """The gradients, as spatial_reduction_backward in op.py has them."""
    launches, (dx, dmatrix, *dvectors) = backward_launches(
        gpu_of(x), dy, x, H, W, weight, norm_weight, normalized, rstd
    )
    run(*launches)
    return dx, dmatrix.permute(3, 2, 0, 1).contiguous(), *dvectors


def forward_launches(
    gpu: Gpu,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """What `forward` launches, and where its results will be."""
    B, _, C = x.shape
    R = weight.shape[-1]
    M = (H // R) * (W // R)
    x = with_adjacent_channels(x)
    y = x.new_empty(B, M, C)
    normalized = x.new_empty(B, M, C, dtype=torch.float32)
    rstd = x.new_empty(B, M, dtype=torch.float32)
    tile = product_tile(gpu, x.dtype)
    splits = splits_of(
        gpu,
        tile.resident,
        blocks=triton.cdiv(B * M, tile.rows) * triton.cdiv(C, tile.outputs),
        steps=triton.cdiv(R * R * C, tile.depth),
    )
    partials = x.new_empty(splits, B * M, C, dtype=torch.float32)
    vectors = (t.contiguous() for t in (bias, norm_weight, norm_bias))
    launches = [
        convolution_launch(tile, H, W, x, _by_token(weight), partials),
        norm_launch(partials, *vectors, y, normalized, rstd, eps),
    ]
    return launches, (y, normalized, rstd)


def backward_launches(
    gpu: Gpu,
    dy: Tensor,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    norm_weight: Tensor,
    normalized: Tensor,
    rstd: Tensor,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """What `backward` launches, and where its results will be; dweight is (R, R, C_in, C_out)."""
    B, N, C = x.shape
    R = weight.shape[-1]
    rows = B * (H // R) * (W // R)
    x = with_adjacent_channels(x)
    dy, gamma, normalized, rstd = (t.contiguous() for t in (dy, norm_weight, normalized, rstd))
    # tokens of no patch stay as they are
    left_over = H % R or W % R
    dx = x.new_zeros(B, N, C) if left_over else x.new_empty(B, N, C)
    dz = x.new_empty(rows, C)
    dmatrix = weight.new_empty(R, R, C, C)
    dbias = weight.new_empty(C)
    dnorm_weight, dnorm_bias = (norm_weight.new_empty(C) for _ in range(2))

    tile = product_tile(gpu, x.dtype)
    splits = splits_of(
        gpu,
        tile.resident,
        blocks=triton.cdiv(R * R * C, tile.rows) * triton.cdiv(C, tile.outputs),
        steps=triton.cdiv(rows, tile.depth),
    )
    weight_partials = x.new_empty(splits, R, R, C, C, dtype=torch.float32)
    vector_partials = x.new_empty(triton.cdiv(rows, norm_rows(C)), 3, C, dtype=torch.float32)
    launches = [
        norm_backward_launch(dy, gamma, normalized, rstd, dz, vector_partials),
        *(
            fold(gpu, vector_partials[:, i], gradient)
            for i, gradient in enumerate((dbias, dnorm_weight, dnorm_bias))
        ),
        dweight_launch(tile, H, W, x, dz, weight_partials),
        fold(gpu, weight_partials, dmatrix),
        dx_launch(product_tile(gpu, x.dtype, rows=32), H, W, dz, _by_token(weight), dx),
    ]
    return launches, (dx, dmatrix, dbias, dnorm_weight, dnorm_bias)


def _by_token(weight: Tensor) -> Tensor:
    """(C_out, C_in, R, R) -> (R, R, C_in, C_out): the matrix of every token of a patch."""
    return weight.permute(2, 3, 1, 0).contiguous()
