"""The bias and the LayerNorm, on the sum of the convolution's partial results."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.launch import Launch, cdiv
from pvt_kernels.backends.triton.spatial_reduction.tiles import NORM_RESIDENT, norm_block


def norm_launch(
    partials: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    y: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    eps: float,
) -> Launch:
    """Writes y, normalized and rstd, as spatial_reduction_forward has them."""
    splits, rows, C = partials.shape
    block_rows, block_channels = norm_block(C)
    return Launch(
        norm_kernel,
        blocks=cdiv(rows, block_rows),
        inputs={"partials": partials, "bias": bias, "gamma": gamma, "beta": beta},
        outputs={"y": y, "normalized": normalized, "rstd": rstd},
        numbers={"eps": eps, "rows": rows, "splits": splits},
        constants={"C": C, "BLOCK_C": block_channels, "BLOCK_M": block_rows},
        resident=NORM_RESIDENT,
    )


@triton.jit(do_not_specialize=["rows", "splits"])
def norm_kernel(
    partials,
    bias,
    gamma,
    beta,
    y,
    normalized,
    rstd,
    eps,
    rows: tl.int32,
    splits: tl.int32,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One tile of rows: the sum of their partial results, its bias and its LayerNorm.

    All is contiguous: partials (splits, rows, C) in fp32, y and normalized (rows, C), rstd (rows,).
    """
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_C)
    m_m = o_m < rows
    m_c = o_c < C
    m_mc = m_m[:, None] & m_c[None, :]
    o_mc = o_m.to(tl.int64)[:, None] * C + o_c[None, :]

    b_z = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    p_partials = partials + o_mc
    for _ in range(0, splits):
        b_z += tl.load(p_partials, mask=m_mc, other=0.0)
        p_partials += rows.to(tl.int64) * C
    b_z += tl.load(bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    b_centred = tl.where(m_c[None, :], b_z - (tl.sum(b_z, 1) / C)[:, None], 0.0)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / C + eps)
    b_normalized = b_centred * b_rstd[:, None]
    b_gamma = tl.load(gamma + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_y = b_normalized * b_gamma[None, :] + b_beta[None, :]
    tl.store(y + o_mc, b_y.to(y.dtype.element_ty), mask=m_mc)
    tl.store(normalized + o_mc, b_normalized, mask=m_mc)
    tl.store(rstd + o_m, b_rstd, mask=m_m)
