"""dq, and delta = rowsum(do * o): a tile of queries stays and passes over the keys."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.attention.forward import load_rows, probabilities
from pvt_kernels.backends.triton.attention.tiles import SIZES, Tile, head_dim_arguments, strides_of
from pvt_kernels.backends.triton.launch import UNIT, Launch, cdiv, precision, strides


def attention_dq_launch(
    tile: Tile,
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    dq: Tensor,
    delta: Tensor,
    scale: float,
) -> Launch:
    """Writes dq, shaped like q, and delta (B, heads, N) in fp32. o and lse are contiguous."""
    B, N, heads, D = q.shape
    head_strides = strides("bnh", do=do, q=q, k=k, v=v)
    head_dim, head_constants = head_dim_arguments(D)
    return Launch(
        attention_dq_kernel,
        blocks=cdiv(N, tile.queries) * B * heads,
        inputs={"do": do, "q": q, "k": k, "v": v, "o": o, "lse": lse},
        outputs={"dq": dq, "delta": delta},
        numbers={
            "scale": scale,
            "N": N,
            "M": k.shape[1],
            "heads": heads,
            **head_dim,
            **head_strides,
        },
        constants={
            **head_constants,
            "BLOCK_N": tile.queries,
            "BLOCK_M": tile.keys,
            "PRECISION": precision(q.dtype),
        },
        warps=tile.warps,
        stages=tile.stages,
        resident=tile.resident,
        maxnreg=tile.maxnreg,
    )


@triton.jit(do_not_specialize=[*SIZES, *strides_of("do", "q", "k", "v")])
def attention_dq_kernel(
    do,
    q,
    k,
    v,
    o,
    lse,
    dq,
    delta,
    scale,
    N: tl.int32,
    M: tl.int32,
    heads: tl.int32,
    D: tl.int32,
    stride_dob: tl.int64,
    stride_don: tl.int64,
    stride_doh: tl.int64,
    stride_qb: tl.int64,
    stride_qn: tl.int64,
    stride_qh: tl.int64,
    stride_kb: tl.int64,
    stride_kn: tl.int64,
    stride_kh: tl.int64,
    stride_vb: tl.int64,
    stride_vn: tl.int64,
    stride_vh: tl.int64,
    WHOLE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(N, BLOCK_N)
    i_bh = (tl.program_id(0) // tiles).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    start_n = (tl.program_id(0) % tiles) * BLOCK_N
    o_n = start_n + tl.arange(0, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_n = o_n < N
    head_dim = BLOCK_D if WHOLE else D * UNIT
    m_d = o_d < head_dim
    m_nd = m_n[:, None] & m_d[None, :]

    do += (i_b * stride_dob + i_h * stride_doh) * UNIT
    q += (i_b * stride_qb + i_h * stride_qh) * UNIT
    k += (i_b * stride_kb + i_h * stride_kh) * UNIT
    v += (i_b * stride_vb + i_h * stride_vh) * UNIT
    p_do = do + o_n.to(tl.int64)[:, None] * (stride_don * UNIT) + o_d[None, :]
    p_q = q + o_n.to(tl.int64)[:, None] * (stride_qn * UNIT) + o_d[None, :]
    p_k = k + o_m.to(tl.int64)[:, None] * (stride_kn * UNIT) + o_d[None, :]
    p_v = v + o_m.to(tl.int64)[:, None] * (stride_vn * UNIT) + o_d[None, :]
    # o and dq are contiguous
    first = (i_b * N * heads + i_h) * head_dim
    o_nd = first + o_n.to(tl.int64)[:, None] * (heads * head_dim) + o_d[None, :]

    b_q = tl.load(p_q, mask=m_nd, other=0.0)
    b_do = tl.load(p_do, mask=m_nd, other=0.0)
    b_o = tl.load(o + o_nd, mask=m_nd, other=0.0)
    b_delta = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1)
    tl.store(delta + i_bh * N + o_n, b_delta, mask=m_n)
    b_lse = tl.load(lse + i_bh * N + o_n, mask=m_n, other=0.0)
    b_dq = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    FINE: tl.constexpr = b_q.dtype == tl.float32 and PRECISION == "ieee"
    scale_log2 = scale * 1.4426950408889634

    full = M // BLOCK_M * BLOCK_M
    for _ in range(0, full, BLOCK_M):
        b_k = load_rows(p_k, m_d, WHOLE)
        b_v = load_rows(p_v, m_d, WHOLE)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_p = probabilities(b_s, b_lse[:, None], scale_log2, FINE)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k.dtype)
        b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
        p_k += BLOCK_M * stride_kn * UNIT
        p_v += BLOCK_M * stride_vn * UNIT
    for start_m in tl.range(full, M, BLOCK_M, num_stages=1):
        m_m = start_m + o_m < M
        b_k = tl.load(p_k, mask=m_m[:, None] & m_d[None, :], other=0.0)
        b_v = tl.load(p_v, mask=m_m[:, None] & m_d[None, :], other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        # after the exponential: of a row whose scores are all very negative it is inf here
        b_p = probabilities(b_s, b_lse[:, None], scale_log2, FINE)
        b_p = tl.where(m_m[None, :], b_p, 0.0)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k.dtype)
        b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)

    b_dq = b_dq * scale
    tl.store(dq + o_nd, b_dq.to(dq.dtype.element_ty), mask=m_nd)
