"""The spatial reduction in Triton; reference.py has the formulas.

Forward: convolution.py, norm.py. Backward: dx.py, dweight.py, ../fold.py. The projection to
keys and values is a product of its own: in the norm's kernel it would save a launch and y's way to
memory and back, by benchmarking/model.py 0.3, 1 and 3.5 % of the forward's least time on an H100 in
stages 1, 2 and 3, for a kernel whose every block reads Wkv; and training needs y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels.backends.tensors import aligned_contiguous, memory_format
from pvt_kernels.backends.triton.launch import (
    Gpu,
    Launch,
    cdiv,
    fold,
    gpu_of,
    run,
    splits_of,
    wide_rows,
)
from pvt_kernels.backends.triton.spatial_reduction.convolution import convolution_launch
from pvt_kernels.backends.triton.spatial_reduction.dweight import dweight_launch
from pvt_kernels.backends.triton.spatial_reduction.dx import dx_launch
from pvt_kernels.backends.triton.spatial_reduction.norm import norm_launch
from pvt_kernels.backends.triton.spatial_reduction.tiles import (
    Tile,
    dx_product_tile,
    product_tile,
)
from pvt_kernels.backends.weights import permuted

# (C_out, C_in, R, R) -> (C_out, R, R, C_in), in the order in which a patch lies in x
BY_TOKEN = (0, 2, 3, 1)


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
    """The gradients, as spatial_reduction_backward has them."""
    launches, gradients = backward_launches(
        gpu_of(x), dy, x, H, W, weight, norm_weight, normalized, rstd
    )
    run(*launches)
    return gradients


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
    matrix: Tensor | None = None,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """What `forward` launches, and where its results will be.

    `matrix` is the weight `by_token`, where there is that already.
    """
    matrix = by_token(weight) if matrix is None else matrix
    B, _, C = x.shape
    R = weight.shape[-1]
    M = (H // R) * (W // R)
    x = wide_rows(x)
    y = x.new_empty(B, M, C)
    normalized = x.new_empty(B, M, C, dtype=torch.float32)
    rstd = x.new_empty(B, M, dtype=torch.float32)
    tile = product_tile(gpu, x.dtype)
    splits = product_splits(gpu, x.dtype, tile, B * M, C, R * R * C)
    partials = x.new_empty(splits, B * M, C, dtype=torch.float32)
    vectors = (aligned_contiguous(t) for t in (bias, norm_weight, norm_bias))
    launches = [
        convolution_launch(tile, H, W, x, matrix, partials),
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
    matrix: Tensor | None = None,
    dx: Tensor | None = None,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """What `backward` launches, and where its results will be; `matrix` as `forward_launches`.

    With a `dx`, the gradient of x's other use, (B, H*W, C) and contiguous, this one is added to it
    in place and rounded with it once; tokens of no patch stay as they are.
    """
    matrix = by_token(weight) if matrix is None else matrix
    B, N, C = x.shape
    R = weight.shape[-1]
    rows = B * (H // R) * (W // R)
    x = wide_rows(x)
    dy, gamma, normalized, rstd = (
        aligned_contiguous(t) for t in (dy, norm_weight, normalized, rstd)
    )
    add = dx is not None
    if dx is None:
        # of a token of no patch nothing is written
        left_over = H % R or W % R
        dx = x.new_zeros(B, N, C) if left_over else x.new_empty(B, N, C)
    dz = x.new_empty(rows, C)
    dweight = torch.empty_like(weight, memory_format=memory_format(weight))
    dvectors = [t.new_empty(C) for t in (weight, norm_weight, norm_weight)]

    tile, dx_tile = product_tile(gpu, x.dtype), dx_product_tile(gpu, x.dtype, C)
    splits = product_splits(gpu, x.dtype, tile, R * R * C, C, rows)
    weight_partials = x.new_empty(splits, C, R, R, C, dtype=torch.float32)
    vector_partials = x.new_empty(cdiv(rows, dx_tile.rows), 3, C, dtype=torch.float32)
    saved = (dy, gamma, normalized, rstd)
    launches = [
        dx_launch(dx_tile, H, W, *saved, matrix, dx, dz, vector_partials, add),
        dweight_launch(tile, H, W, x, dz, weight_partials),
        fold(
            gpu,
            vector_partials.unsqueeze(2),
            [t.unsqueeze(0) for t in dvectors],
            weight_partials.flatten(2, 3),
            [dweight.permute(0, 2, 3, 1).view(C, R * R, C)],
        ),
    ]
    return launches, (dx, dweight, *dvectors)


def product_splits(
    gpu: Gpu, dtype: torch.dtype, tile: Tile, rows: int, outputs: int, depth: int
) -> int:
    """Into how many parts the sums of a product are split, whose result is rows x outputs."""
    return splits_of(
        gpu,
        dtype,
        tile.resident,
        blocks=cdiv(rows, tile.rows) * cdiv(outputs, tile.outputs),
        steps=cdiv(depth, tile.depth),
        multiply_adds=tile.rows * tile.outputs * tile.depth,
        numbers=rows * outputs,
    )


def by_token(weight: Tensor) -> Tensor:
    """The weight in the order BY_TOKEN.

    A weight in PyTorch's memory format channels_last is in that order already. Another one is
    copied, by benchmarking/model.py 0.3 us of device memory's time on an H100 in stages 1 and 2: as
    it lies, the channels of a token are R*R numbers apart, and the convolution would read up to 16
    times the bytes, in each of its blocks.
    """
    return permuted(weight, BY_TOKEN, keep=False)
