"""The attention forward: one block of threads keeps a tile of queries and passes over the keys."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.attention.tiles import SIZES, Tile, head_dim_arguments, strides_of
from pvt_kernels.backends.triton.launch import UNIT, Launch, cdiv, precision, strides


def attention_forward_launch(
    tile: Tile, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> Launch:
    """Writes o and lse, as attention_forward has them."""
    B, N, heads, D = q.shape
    head_strides = strides("bnh", q=q, k=k, v=v)
    head_dim, head_constants = head_dim_arguments(D)
    return Launch(
        attention_forward_kernel,
        blocks=cdiv(N, tile.queries) * B * heads,
        inputs={"q": q, "k": k, "v": v},
        outputs={"o": o, "lse": lse},
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


@triton.jit(do_not_specialize=[*SIZES, *strides_of("q", "k", "v")])
def attention_forward_kernel(
    q,
    k,
    v,
    o,
    lse,
    scale,
    N: tl.int32,
    M: tl.int32,
    heads: tl.int32,
    D: tl.int32,
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
    """One tile of queries of one head, over all its keys: o and lse.

    q (B, N, heads, d), k and v (B, M, heads, d) have adjacent channels and strides in units; o and
    lse are contiguous. D is d in units, where WHOLE does not say that it is BLOCK_D.
    """
    # neighbours share their head's keys and values, which stay in L2
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

    q += (i_b * stride_qb + i_h * stride_qh) * UNIT
    k += (i_b * stride_kb + i_h * stride_kh) * UNIT
    v += (i_b * stride_vb + i_h * stride_vh) * UNIT
    p_q = q + o_n.to(tl.int64)[:, None] * (stride_qn * UNIT) + o_d[None, :]
    p_k = k + o_m.to(tl.int64)[:, None] * (stride_kn * UNIT) + o_d[None, :]
    p_v = v + o_m.to(tl.int64)[:, None] * (stride_vn * UNIT) + o_d[None, :]

    # [BLOCK_N, BLOCK_D]
    b_q = tl.load(p_q, mask=m_n[:, None] & m_d[None, :], other=0.0)
    if scale < 0:
        b_q = -b_q
    b_o = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    b_max = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_N,), tl.float32)
    scale_log2 = positive_scale(scale)

    full = M // BLOCK_M * BLOCK_M
    for _ in range(0, full, BLOCK_M):
        b_k = load_rows(p_k, m_d, WHOLE)
        b_v = load_rows(p_v, m_d, WHOLE)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_o, b_max, b_sum = attend(b_s, b_v, b_o, b_max, b_sum, scale_log2, PRECISION)
        p_k += BLOCK_M * stride_kn * UNIT
        p_v += BLOCK_M * stride_vn * UNIT
    # the last tile, if it is not full
    for start_m in tl.range(full, M, BLOCK_M, num_stages=1):
        m_m = start_m + o_m < M
        b_k = tl.load(p_k, mask=m_m[:, None] & m_d[None, :], other=0.0)
        b_v = tl.load(p_v, mask=m_m[:, None] & m_d[None, :], other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_s = tl.where(m_m[None, :], b_s, float("-inf"))
        b_o, b_max, b_sum = attend(b_s, b_v, b_o, b_max, b_sum, scale_log2, PRECISION)

    b_o = b_o / b_sum[:, None]
    b_lse = log_sum_exp(b_max, b_sum)
    o += (i_b * N * heads + i_h) * head_dim
    p_o = o + o_n.to(tl.int64)[:, None] * (heads * head_dim) + o_d[None, :]
    tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_n[:, None] & m_d[None, :])
    tl.store(lse + i_bh * N + o_n, b_lse, mask=m_n)


@triton.jit
def load_rows(pointers, m_d, WHOLE: tl.constexpr):
    """Whole rows: a mask is needed only where the head is narrower than its block."""
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=m_d[None, :], other=0.0)


@triton.jit
def positive_scale(scale):
    """The factor of the scores to base 2, where q has changed its sign with a negative scale.

    The highest score is then the highest product, and the factor can wait for the exponential.
    Zero would make NaN of minus infinity: with the least number instead all keys weigh the same
    too.
    """
    return tl.maximum(tl.abs(scale) * 1.4426950408889634, 1.1754943508222875e-38)


@triton.jit
def attend(b_s, b_v, b_o, b_max, b_sum, scale_log2, PRECISION: tl.constexpr):
    """One tile of keys in the online softmax (Milakov and Gimelshein, 2018), to base 2.

    b_s is without its factor, which is above zero: scaled, with the maximum off, in one fused
    multiply-add a score. b_max has the factor; its rounding is in the sum too, and cancels.
    """
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2)
    b_p = tl.exp2(tl.fma(b_s, scale_log2, -b_new[:, None]))
    b_rescale = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_rescale + tl.sum(b_p, 1)
    b_o = b_o * b_rescale[:, None]
    b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o, input_precision=PRECISION)
    return b_o, b_new, b_sum


@triton.jit
def log_sum_exp(b_max, b_sum):
    """What the backward needs of a row, natural, from its highest score and its sum, to base 2.

    Rounded once: what is lost here, all probabilities of the row get wrong in the backward.
    """
    return ((b_max.to(tl.float64) + tl.log2(b_sum)) * 0.6931471805599453).to(tl.float32)


@triton.jit
def probabilities(b_s, b_lse, scale_log2, FINE: tl.constexpr):
    """P = exp(S * scale - lse) of scores that are computed again; lse is broadcast to them.

    One fused multiply-add a score, since a product rounded before the difference would have the
    error of the large numbers. Where the scores have the precision of fp32 (FINE), lse to base 2 is
    taken in two parts, for the reason that the forward rounds it once: a product of 12 and of 11
    bits, which is exact, and the rest.
    """
    if FINE:
        b_high = (b_lse.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
        b_rest = (b_lse - b_high) * 1.4423828125 + b_lse * 0.0003122283889634
        return tl.exp2(tl.fma(b_s, scale_log2, -b_high * 1.4423828125) - b_rest)
    else:
        return tl.exp2(tl.fma(b_s, scale_log2, -b_lse * 1.4426950408889634))
