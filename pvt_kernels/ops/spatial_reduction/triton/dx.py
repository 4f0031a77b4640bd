"""dx: patches do not overlap, so that every element is written once, without atomics."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.ops.spatial_reduction.triton.convolution import first_token, patch_offset
from pvt_kernels.ops.spatial_reduction.triton.tiles import MAP, Tile
from pvt_kernels.ops.triton_launch import Launch, precision


def dx_launch(tile: Tile, H: int, W: int, dz: Tensor, weight: Tensor, dx: Tensor) -> Launch:
    """Writes the patches of dx (B, H*W, C), from dz (B*M, C) and weight (R, R, C_in, C_out)."""
    rows, C = dz.shape
    R = weight.shape[0]
    return Launch(
        dx_kernel,
        blocks=triton.cdiv(rows, tile.rows) * triton.cdiv(R * R * C, tile.outputs),
        inputs={"dz": dz, "weight": weight},
        outputs={"dx": dx},
        numbers={"rows": rows, "H": H, "W": W},
        constants={
            "C": C,
            "R": R,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.outputs,
            "BLOCK_K": tile.depth,
            "PRECISION": precision(dz.dtype),
        },
        warps=tile.warps,
        stages=tile.stages,
        resident=tile.resident,
    )


@triton.jit(do_not_specialize=[*MAP])
def dx_kernel(
    dz,
    weight,
    dx,
    rows: tl.int32,
    H: tl.int32,
    W: tl.int32,
    C: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # [BLOCK_M, BLOCK_N]: patches by their numbers
    depth: tl.constexpr = R * R * C
    depth_tiles: tl.constexpr = (depth + BLOCK_N - 1) // BLOCK_N
    i_n = tl.program_id(0) % depth_tiles
    i_m = tl.program_id(0) // depth_tiles
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < depth

    # rows beyond the last read the last again, and are not stored
    o_row = tl.minimum(o_m, rows - 1)
    p_dz = dz + o_row.to(tl.int64)[:, None] * C + o_k[None, :]
    p_weight = weight + o_n[:, None] * C + o_k[None, :]
    b_dx = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start_k in range(0, C, BLOCK_K):
        m_k = start_k + o_k < C
        b_dz = tl.load(p_dz + start_k, mask=m_k[None, :], other=0.0)
        b_w = tl.load(p_weight + start_k, mask=m_n[:, None] & m_k[None, :], other=0.0)
        b_dx = tl.dot(b_dz, tl.trans(b_w), b_dx, input_precision=PRECISION)

    token, i_b = first_token(o_row, H, W, R)
    token += i_b * H * W
    p_dx = dx + token[:, None] * C + patch_offset(o_n, W, C, C, R)[None, :]
    tl.store(p_dx, b_dx.to(dx.dtype.element_ty), mask=(o_m < rows)[:, None] & m_n[None, :])
