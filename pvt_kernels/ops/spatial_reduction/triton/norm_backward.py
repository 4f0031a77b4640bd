"""Back through the LayerNorm: dz, and every block's share of its parameters' gradients."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.ops.spatial_reduction.triton.tiles import norm_rows
from pvt_kernels.ops.triton_launch import Launch, block_of


def norm_backward_launch(
    dy: Tensor, gamma: Tensor, normalized: Tensor, rstd: Tensor, dz: Tensor, partials: Tensor
) -> Launch:
    """Writes dz (B*M, C), the gradient of the convolution with its bias, and partials.

    partials (blocks, 3, C) are sums over some rows, in fp32: of dz, of dy * normalized, of dy.
    """
    rows, C = dz.shape
    return Launch(
        norm_backward_kernel,
        blocks=partials.shape[0],
        inputs={"dy": dy, "gamma": gamma, "normalized": normalized, "rstd": rstd},
        outputs={"dz": dz, "partials": partials},
        numbers={"rows": rows},
        constants={"C": C, "BLOCK_C": block_of(C), "BLOCK_M": norm_rows(C)},
    )


@triton.jit(do_not_specialize=["rows"])
def norm_backward_kernel(
    dy,
    gamma,
    normalized,
    rstd,
    dz,
    partials,
    rows: tl.int32,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_C)
    m_m = o_m < rows
    m_c = o_c < C
    m_mc = m_m[:, None] & m_c[None, :]
    o_mc = o_m.to(tl.int64)[:, None] * C + o_c[None, :]

    b_dy = tl.load(dy + o_mc, mask=m_mc, other=0.0).to(tl.float32)
    b_normalized = tl.load(normalized + o_mc, mask=m_mc, other=0.0)
    b_rstd = tl.load(rstd + o_m, mask=m_m, other=0.0)
    b_g = b_dy * tl.load(gamma + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    b_mean = tl.sum(b_g, 1) / C
    b_projection = tl.sum(b_g * b_normalized, 1) / C
    b_dz = b_g - b_mean[:, None] - b_normalized * b_projection[:, None]
    b_dz = tl.where(m_mc, b_dz * b_rstd[:, None], 0.0)
    tl.store(dz + o_mc, b_dz.to(dz.dtype.element_ty), mask=m_mc)
    partials += tl.program_id(0).to(tl.int64) * 3 * C
    tl.store(partials + o_c, tl.sum(b_dz, 0), mask=m_c)
    tl.store(partials + C + o_c, tl.sum(b_dy * b_normalized, 0), mask=m_c)
    tl.store(partials + 2 * C + o_c, tl.sum(b_dy, 0), mask=m_c)
