"""q projection, attention and out projection: one block of threads has all heads of its queries.

q and o stay on the multiprocessor; o is written only where a backward will need it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.attention.forward import attend, log_sum_exp, positive_scale
from pvt_kernels.backends.triton.attention.tiles import Tile
from pvt_kernels.backends.triton.launch import UNIT, Launch, cdiv, precision, strides


def multi_head_attention_launch(
    tile: Tile,
    x: Tensor,
    kv: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    result: Tensor,
    o: Tensor,
    lse: Tensor,
    scale: float,
) -> Launch:
    """Writes result, lse and, unless it is empty, o, as multi_head_attention_forward has them.

    kv (B, M, 2C) and the weights are contiguous. C and head_dim are a block's, without masks; what
    else may differ from layer to layer is a number, so that it is all one compiled kernel.
    """
    B, N, C = x.shape
    heads = lse.shape[1]
    return Launch(
        multi_head_attention_kernel,
        blocks=cdiv(N, tile.queries) * B,
        inputs={
            "x": x,
            "kv": kv,
            "q_weight": q_weight,
            # where there is no bias, the kernel does not read it
            "q_bias": q_weight if q_bias is None else q_bias,
            "out_weight": out_weight,
            "out_bias": out_weight if out_bias is None else out_bias,
        },
        outputs={"result": result, "o": o, "lse": lse},
        numbers={
            "scale": scale,
            "N": N,
            "M": kv.shape[1],
            "has_q_bias": int(q_bias is not None),
            "has_out_bias": int(out_bias is not None),
            "save": int(o.numel() > 0),
            **strides("bn", x=x),
        },
        constants={
            "BLOCK_C": C,
            "BLOCK_D": C // heads,
            "BLOCK_N": tile.queries,
            "BLOCK_M": tile.keys,
            "PRECISION": precision(x.dtype),
        },
        warps=tile.warps,
        stages=tile.stages,
        resident=tile.resident,
        maxnreg=tile.maxnreg,
    )


@triton.jit(
    do_not_specialize=[
        *("N", "M", "has_q_bias", "has_out_bias", "save", "stride_xb", "stride_xn"),
    ]
)
def multi_head_attention_kernel(
    x,
    kv,
    q_weight,
    q_bias,
    out_weight,
    out_bias,
    result,
    o,
    lse,
    scale,
    N: tl.int32,
    M: tl.int32,
    has_q_bias: tl.int32,
    has_out_bias: tl.int32,
    save: tl.int32,
    stride_xb: tl.int64,
    stride_xn: tl.int64,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HEADS: tl.constexpr = BLOCK_C // BLOCK_D
    tiles = tl.cdiv(N, BLOCK_N)
    i_b = (tl.program_id(0) // tiles).to(tl.int64)
    o_n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_C)
    o_d = tl.arange(0, BLOCK_D)
    m_n = o_n < N

    o_row = (i_b * N + o_n) * BLOCK_C
    p_x = x + i_b * stride_xb * UNIT
    p_x += o_n.to(tl.int64)[:, None] * (stride_xn * UNIT) + o_c[None, :]
    b_result = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    scale_log2 = positive_scale(scale)
    full = M // BLOCK_M * BLOCK_M

    for i_h in range(HEADS):
        # x is read again for every head, from L2, which takes fewer registers than keeping it
        b_x = tl.load(p_x, mask=m_n[:, None], other=0.0)
        b_w = tl.load(q_weight + (i_h * BLOCK_D + o_d)[:, None] * BLOCK_C + o_c[None, :])
        b_q = tl.dot(b_x, tl.trans(b_w), input_precision=PRECISION)
        p_bias = q_bias + i_h * BLOCK_D + o_d
        b_bias = tl.load(p_bias, mask=(o_d < BLOCK_D) & (has_q_bias != 0), other=0.0)
        b_q += b_bias.to(tl.float32)[None, :]
        b_q = tl.where(scale < 0, -b_q, b_q).to(b_x.dtype)

        p_k = kv + i_b * M * (2 * BLOCK_C) + i_h * BLOCK_D
        p_k += o_m.to(tl.int64)[:, None] * (2 * BLOCK_C) + o_d[None, :]
        b_o = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        b_max = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        b_sum = tl.zeros((BLOCK_N,), tl.float32)
        for _ in range(0, full, BLOCK_M):
            b_k, b_v = tl.load(p_k), tl.load(p_k + BLOCK_C)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
            b_o, b_max, b_sum = attend(b_s, b_v, b_o, b_max, b_sum, scale_log2, PRECISION)
            p_k += BLOCK_M * 2 * BLOCK_C
        for start_m in tl.range(full, M, BLOCK_M, num_stages=1):
            m_m = start_m + o_m < M
            b_k = tl.load(p_k, mask=m_m[:, None], other=0.0)
            b_v = tl.load(p_k + BLOCK_C, mask=m_m[:, None], other=0.0)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
            b_s = tl.where(m_m[None, :], b_s, float("-inf"))
            b_o, b_max, b_sum = attend(b_s, b_v, b_o, b_max, b_sum, scale_log2, PRECISION)

        b_o = (b_o / b_sum[:, None]).to(b_x.dtype)
        b_lse = log_sum_exp(b_max, b_sum)
        tl.store(lse + (i_b * HEADS + i_h) * N + o_n, b_lse, mask=m_n)
        p_o = o + o_row[:, None] + (i_h * BLOCK_D + o_d)[None, :]
        tl.store(p_o, b_o, mask=m_n[:, None] & (save != 0))
        b_w = tl.load(out_weight + o_c[:, None] * BLOCK_C + (i_h * BLOCK_D + o_d)[None, :])
        b_result = tl.dot(b_o, tl.trans(b_w), b_result, input_precision=PRECISION)

    # not before the loop, where it would fill registers
    b_out_bias = tl.load(out_bias + o_c, mask=(o_c < BLOCK_C) & (has_out_bias != 0), other=0.0)
    b_result += b_out_bias.to(tl.float32)[None, :]
    p_result = result + o_row[:, None] + o_c[None, :]
    tl.store(p_result, b_result.to(result.dtype.element_ty), mask=m_n[:, None])
