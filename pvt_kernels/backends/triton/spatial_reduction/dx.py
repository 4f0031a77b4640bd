"""Back through the LayerNorm to dz, and on to dx.

Patches do not overlap, so that every element of dx is written once, without atomics. Each block
computes its rows' dz anew, from L2: a kernel for them alone would be a launch with a megabyte to
move, too little to fill a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.launch import Launch, cdiv, precision
from pvt_kernels.backends.triton.spatial_reduction.convolution import first_token, patch_offset
from pvt_kernels.backends.triton.spatial_reduction.tiles import MAP, Tile


def dx_launch(
    tile: Tile,
    H: int,
    W: int,
    dy: Tensor,
    gamma: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    weight: Tensor,
    dx: Tensor,
    dz: Tensor,
    partials: Tensor,
    add: bool,
) -> Launch:
    """Writes the patches of dx (B, H*W, C), dz (B*M, C) and partials (tiles of rows, 3, C).

    With `add` the patches are added to what dx has. dz is the gradient of the convolution with its
    bias, the partials sums over a tile's rows, in fp32: of dz, of dy * normalized, of dy. weight is
    (C_out, R, R, C_in), all are contiguous.
    """
    rows, C = dz.shape
    R = weight.shape[1]
    return Launch(
        dx_kernel,
        blocks=partials.shape[0] * cdiv(R * R * C, tile.outputs),
        inputs={
            "dy": dy,
            "gamma": gamma,
            "normalized": normalized,
            "rstd": rstd,
            "weight": weight,
        },
        outputs={"dx": dx, "dz": dz, "partials": partials},
        numbers={"rows": rows, "H": H, "W": W, "add": int(add)},
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


@triton.jit(do_not_specialize=[*MAP, "add"])
def dx_kernel(
    dy,
    gamma,
    normalized,
    rstd,
    weight,
    dx,
    dz,
    partials,
    rows: tl.int32,
    H: tl.int32,
    W: tl.int32,
    add: tl.int32,
    C: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of rows and of their patches' numbers: dx; a row's first tile has dz and sums too.

    All is contiguous, as dx_launch has it. Row i is patch i of all images.
    """
    # [BLOCK_M, BLOCK_N]: patches by their numbers
    depth: tl.constexpr = R * R * C
    depth_tiles: tl.constexpr = (depth + BLOCK_N - 1) // BLOCK_N
    i_n = tl.program_id(0) % depth_tiles
    i_m = tl.program_id(0) // depth_tiles
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m = o_m < rows
    m_n = o_n < depth

    o_row = o_m.to(tl.int64) * C
    b_mean = tl.zeros((BLOCK_M,), tl.float32)
    b_projection = tl.zeros((BLOCK_M,), tl.float32)
    for start_k in range(0, C, BLOCK_K):
        b_dy, b_normalized, b_g = _gradient(dy, gamma, normalized, o_row, start_k + o_k, m_m, C)
        b_mean += tl.sum(b_g, 1) / C
        b_projection += tl.sum(b_g * b_normalized, 1) / C

    b_rstd = tl.load(rstd + o_m, mask=m_m, other=0.0)
    p_weight = weight + o_k[:, None] * depth + o_n[None, :]
    b_dx = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    partials += i_m.to(tl.int64) * 3 * C
    for start_k in range(0, C, BLOCK_K):
        o_c = start_k + o_k
        m_c = o_c < C
        b_dy, b_normalized, b_g = _gradient(dy, gamma, normalized, o_row, o_c, m_m, C)
        b_dz = b_g - b_mean[:, None] - b_normalized * b_projection[:, None]
        b_dz = tl.where(m_m[:, None] & m_c[None, :], b_dz * b_rstd[:, None], 0.0)
        if i_n == 0:
            p_dz = dz + o_row[:, None] + o_c[None, :]
            tl.store(p_dz, b_dz.to(dz.dtype.element_ty), mask=m_m[:, None] & m_c[None, :])
            tl.store(partials + o_c, tl.sum(b_dz, 0), mask=m_c)
            tl.store(partials + C + o_c, tl.sum(b_dy * b_normalized, 0), mask=m_c)
            tl.store(partials + 2 * C + o_c, tl.sum(b_dy, 0), mask=m_c)
        m_kn = m_c[:, None] & m_n[None, :]
        b_w = tl.load(p_weight + start_k * depth, mask=m_kn, other=0.0)
        b_dx = tl.dot(b_dz.to(b_w.dtype), b_w, b_dx, input_precision=PRECISION)

    # rows beyond the last are not stored
    token, i_b = first_token(tl.minimum(o_m, rows - 1), H, W, R)
    token += i_b * H * W
    p_dx = dx + token[:, None] * C + patch_offset(o_n, W, C, C, R)[None, :]
    m_mn = m_m[:, None] & m_n[None, :]
    b_dx += tl.load(p_dx, mask=m_mn & (add != 0), other=0.0).to(tl.float32)
    tl.store(p_dx, b_dx.to(dx.dtype.element_ty), mask=m_mn)


@triton.jit
def _gradient(dy, gamma, normalized, o_row, o_c, m_m, C: tl.constexpr):
    """[rows, channels]: dy, the normalised rows and their gradient, zeros beyond both ends."""
    m_c = o_c < C
    m_mc = m_m[:, None] & m_c[None, :]
    o_mc = o_row[:, None] + o_c[None, :]
    b_dy = tl.load(dy + o_mc, mask=m_mc, other=0.0).to(tl.float32)
    b_normalized = tl.load(normalized + o_mc, mask=m_mc, other=0.0)
    b_gamma = tl.load(gamma + o_c, mask=m_c, other=0.0).to(tl.float32)
    return b_dy, b_normalized, b_dy * b_gamma[None, :]
