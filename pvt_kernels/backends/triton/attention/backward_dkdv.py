"""dk and dv: a tile of keys stays and passes over one split of the queries.

With few heads and few keys there are far fewer tiles of keys than multiprocessors, so that the
queries are split too; each split writes a partial result in fp32, and fold_kernel adds them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.attention.forward import load_rows, probabilities
from pvt_kernels.backends.triton.attention.tiles import SIZES, Tile, head_dim_arguments, strides_of
from pvt_kernels.backends.triton.launch import UNIT, Launch, cdiv, precision, strides


def attention_dkdv_launch(
    tile: Tile,
    splits: int,
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    partials: Tensor,
    scale: float,
) -> Launch:
    """Writes partials (splits, 2, B, M, heads, d) in fp32: every split's share of dk and of dv."""
    B, N, heads, D = q.shape
    M = k.shape[1]
    head_strides = strides("bnh", do=do, q=q, k=k, v=v)
    head_dim, head_constants = head_dim_arguments(D)
    return Launch(
        attention_dkdv_kernel,
        blocks=cdiv(M, tile.keys) * B * heads * splits,
        inputs={"do": do, "q": q, "k": k, "v": v, "lse": lse, "delta": delta},
        outputs={"partials": partials},
        numbers={
            "scale": scale,
            "B": B,
            "N": N,
            "M": M,
            "heads": heads,
            "splits": splits,
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


@triton.jit(do_not_specialize=[*SIZES, "B", "splits", *strides_of("do", "q", "k", "v")])
def attention_dkdv_kernel(
    do,
    q,
    k,
    v,
    lse,
    delta,
    partials,
    scale,
    B: tl.int32,
    N: tl.int32,
    M: tl.int32,
    heads: tl.int32,
    D: tl.int32,
    splits: tl.int32,
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
    # the key tiles of one split are neighbours: they read the same queries
    key_tiles = tl.cdiv(M, BLOCK_M)
    start_m = (tl.program_id(0) % key_tiles) * BLOCK_M
    rest = tl.program_id(0) // key_tiles
    i_s = (rest % splits).to(tl.int64)
    i_bh = (rest // splits).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    # whole tiles of queries but for the last; a split beyond N has none, and writes zeros
    split_n = tl.cdiv(tl.cdiv(N, BLOCK_N), splits) * BLOCK_N
    start_n = tl.minimum(i_s * split_n, N)
    end_n = tl.minimum(start_n + split_n, N)
    o_m = start_m + tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    head_dim = BLOCK_D if WHOLE else D * UNIT
    m_d = o_d < head_dim
    m_md = (o_m < M)[:, None] & m_d[None, :]

    do += (i_b * stride_dob + i_h * stride_doh + start_n * stride_don) * UNIT
    q += (i_b * stride_qb + i_h * stride_qh + start_n * stride_qn) * UNIT
    k += (i_b * stride_kb + i_h * stride_kh) * UNIT
    v += (i_b * stride_vb + i_h * stride_vh) * UNIT
    p_do = do + o_n.to(tl.int64)[:, None] * (stride_don * UNIT) + o_d[None, :]
    p_q = q + o_n.to(tl.int64)[:, None] * (stride_qn * UNIT) + o_d[None, :]
    p_k = k + o_m.to(tl.int64)[:, None] * (stride_kn * UNIT) + o_d[None, :]
    p_v = v + o_m.to(tl.int64)[:, None] * (stride_vn * UNIT) + o_d[None, :]
    p_lse = lse + i_bh * N + start_n + o_n
    p_delta = delta + i_bh * N + start_n + o_n

    b_k = tl.load(p_k, mask=m_md, other=0.0)
    b_v = tl.load(p_v, mask=m_md, other=0.0)
    b_dk = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_dv = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    scale_log2 = scale * 1.4426950408889634

    full = start_n + (end_n - start_n) // BLOCK_N * BLOCK_N
    for _ in range(start_n, full, BLOCK_N):
        b_q = load_rows(p_q, m_d, WHOLE)
        b_do = load_rows(p_do, m_d, WHOLE)
        b_lse = tl.load(p_lse)
        b_delta = tl.load(p_delta)
        b_dk, b_dv = _accumulate(
            b_k, b_v, b_q, b_do, b_lse, b_delta, b_dk, b_dv, scale_log2, PRECISION
        )
        p_q += BLOCK_N * stride_qn * UNIT
        p_do += BLOCK_N * stride_don * UNIT
        p_lse += BLOCK_N
        p_delta += BLOCK_N
    for start in tl.range(full, end_n, BLOCK_N, num_stages=1):
        # queries of zeros, with do and delta of zeros, add nothing
        m_n = start + o_n < end_n
        b_q = tl.load(p_q, mask=m_n[:, None] & m_d[None, :], other=0.0)
        b_do = tl.load(p_do, mask=m_n[:, None] & m_d[None, :], other=0.0)
        b_lse = tl.load(p_lse, mask=m_n, other=0.0)
        b_delta = tl.load(p_delta, mask=m_n, other=0.0)
        b_dk, b_dv = _accumulate(
            b_k, b_v, b_q, b_do, b_lse, b_delta, b_dk, b_dv, scale_log2, PRECISION
        )

    # (splits, 2, B, M, heads, head_dim)
    size = B.to(tl.int64) * M * heads * head_dim
    partials += i_s * 2 * size + (i_b * M * heads + i_h) * head_dim
    o_md = o_m.to(tl.int64)[:, None] * (heads * head_dim) + o_d[None, :]
    tl.store(partials + o_md, b_dk * scale, mask=m_md)
    tl.store(partials + size + o_md, b_dv, mask=m_md)


@triton.jit
def _accumulate(
    b_k, b_v, b_q, b_do, b_lse, b_delta, b_dk, b_dv, scale_log2, PRECISION: tl.constexpr
):
    """Add one tile of queries. Everything is transposed, [BLOCK_M, BLOCK_N]: P^T and dS^T are
    left factors as they stand. Keys beyond M only touch rows that are not stored."""
    FINE: tl.constexpr = b_q.dtype == tl.float32 and PRECISION == "ieee"
    b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
    b_p = probabilities(b_s, b_lse[None, :], scale_log2, FINE)
    b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
    b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
    b_ds = (b_p * (b_dp - b_delta[None, :])).to(b_q.dtype)
    b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv
