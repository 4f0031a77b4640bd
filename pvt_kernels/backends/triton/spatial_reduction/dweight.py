"""The weight's gradient, a product of dz and patches over the rows, which are split."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.launch import UNIT, Launch, cdiv, precision, strides
from pvt_kernels.backends.triton.spatial_reduction.convolution import first_token, patch_offset
from pvt_kernels.backends.triton.spatial_reduction.tiles import MAP, Tile


def dweight_launch(tile: Tile, H: int, W: int, x: Tensor, dz: Tensor, partials: Tensor) -> Launch:
    """Writes partials (splits, C_out, R, R, C_in) in fp32, from dz (B*M, C), contiguous."""
    splits, C, R, *_ = partials.shape
    rows = dz.shape[0]
    return Launch(
        dweight_kernel,
        blocks=cdiv(R * R * C, tile.rows) * triton.cdiv(C, tile.outputs) * splits,
        inputs={"x": x, "dz": dz},
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
def dweight_kernel(
    x,
    dz,
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
    """One tile of the weight's gradient, over one split of the rows: a partial product.

    x (B, H*W, C) has adjacent channels and strides in units; dz (rows, C) and partials
    (splits, C_out, R, R, C_in) are contiguous. Row i is patch i of all images.
    """
    depth: tl.constexpr = R * R * C
    depth_tiles: tl.constexpr = (depth + BLOCK_M - 1) // BLOCK_M
    output_tiles: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    i_n = tl.program_id(0) % output_tiles
    i_m = tl.program_id(0) // output_tiles % depth_tiles
    i_s = tl.program_id(0) // (output_tiles * depth_tiles)
    # [BLOCK_N, BLOCK_M]: output channels by numbers of a patch
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m = o_m < depth
    m_n = o_n < C

    o_patch = patch_offset(o_m, W, stride_xn * UNIT, C, R)
    b_dw = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    per_split = tl.cdiv(tl.cdiv(rows, BLOCK_K), splits) * BLOCK_K
    end = tl.minimum((i_s + 1) * per_split, rows)
    for start_k in range(i_s * per_split, end, BLOCK_K):
        o_row = start_k + o_k
        m_k = o_row < end
        token, i_b = first_token(o_row, H, W, R)
        p_x = x + ((i_b * stride_xb + token * stride_xn) * UNIT)[:, None] + o_patch[None, :]
        p_dz = dz + o_row.to(tl.int64)[:, None] * C + o_n[None, :]
        b_x = tl.load(p_x, mask=m_k[:, None] & m_m[None, :], other=0.0)
        b_dz = tl.load(p_dz, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_dw = tl.dot(tl.trans(b_dz), b_x, b_dw, input_precision=PRECISION)

    p_dw = partials + i_s.to(tl.int64) * (C * depth) + o_n[:, None] * depth + o_m[None, :]
    tl.store(p_dw, b_dw, mask=m_n[:, None] & m_m[None, :])
