"""The convolution as a matrix product: rows are patches, gathered from the tokens as they lie.

There are only B*M rows, too few tiles to fill a GPU, so that the sum over the patch's tokens and
channels is split too; each split writes a partial result in fp32, and the norm's kernel adds them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.launch import UNIT, Launch, cdiv, precision, strides
from pvt_kernels.backends.triton.spatial_reduction.tiles import MAP, Tile


def convolution_launch(
    tile: Tile, H: int, W: int, x: Tensor, weight: Tensor, partials: Tensor
) -> Launch:
    """Writes partials (splits, B*M, C) in fp32, from weight (C_out, R, R, C_in), contiguous."""
    splits, rows, C = partials.shape
    R = weight.shape[1]
    return Launch(
        convolution_kernel,
        blocks=cdiv(rows, tile.rows) * triton.cdiv(C, tile.outputs) * splits,
        inputs={"x": x, "weight": weight},
        outputs={"partials": partials},
        numbers={"rows": rows, "H": H, "W": W, "splits": splits, **strides("bn", x=x)},
        constants={
            "C": C,
            "R": R,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.outputs,
            "BLOCK_K": tile.depth,
            "PRECISION": precision(x.dtype),
        },
        warps=tile.warps,
        stages=tile.stages,
        resident=tile.resident,
    )


@triton.jit(do_not_specialize=[*MAP, "splits", "stride_xb", "stride_xn"])
def convolution_kernel(
    x,
    weight,
    partials,
    rows: tl.int32,
    H: tl.int32,
    W: tl.int32,
    splits: tl.int32,
    stride_xb: tl.int64,
    stride_xn: tl.int64,
    C: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of rows and of outputs, over one split of the patches' numbers: a partial product.

    x (B, H*W, C) has adjacent channels and strides in units; weight (C_out, R, R, C_in) and
    partials (splits, rows, C) are contiguous. Row i is patch i of all images.
    """
    depth: tl.constexpr = R * R * C
    output_tiles: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    i_n = tl.program_id(0) % output_tiles
    rest = tl.program_id(0) // output_tiles
    i_m = rest % tl.cdiv(rows, BLOCK_M)
    i_s = rest // tl.cdiv(rows, BLOCK_M)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)

    # rows beyond the last read the last again, and are not stored
    token, i_b = first_token(tl.minimum(o_m, rows - 1), H, W, R)
    p_x = x + ((i_b * stride_xb + token * stride_xn) * UNIT)[:, None]
    p_weight = weight + o_n[:, None] * depth + o_k[None, :]
    b_z = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    per_split = tl.cdiv(tl.cdiv(depth, BLOCK_K), splits) * BLOCK_K
    end = tl.minimum((i_s + 1) * per_split, depth)
    for start_k in range(i_s * per_split, end, BLOCK_K):
        m_k = start_k + o_k < depth
        o_patch = patch_offset(start_k + o_k, W, stride_xn * UNIT, C, R)
        m_nk = (o_n < C)[:, None] & m_k[None, :]
        b_x = tl.load(p_x + o_patch[None, :], mask=m_k[None, :], other=0.0)
        b_w = tl.load(p_weight + start_k, mask=m_nk, other=0.0)
        b_z = tl.dot(b_x, tl.trans(b_w), b_z, input_precision=PRECISION)

    p_z = partials + (i_s.to(tl.int64) * rows + o_m)[:, None] * C + o_n[None, :]
    tl.store(p_z, b_z, mask=(o_m < rows)[:, None] & (o_n < C)[None, :])


@triton.jit
def first_token(o_m, H, W, R: tl.constexpr):
    """The first token of patch o_m, counted over all images, and its image."""
    w = W // R
    M = (H // R) * w
    i_b = o_m // M
    o_patch = o_m % M
    token = (o_patch // w) * R * W + (o_patch % w) * R
    return token.to(tl.int64), i_b.to(tl.int64)


@triton.jit
def patch_offset(o_k, W, stride, C: tl.constexpr, R: tl.constexpr):
    """Where number o_k of a patch's R*R*C lies, from its first, if tokens are `stride` apart."""
    tap = o_k // C
    return (tap // R * W + tap % R).to(tl.int64) * stride + o_k % C
