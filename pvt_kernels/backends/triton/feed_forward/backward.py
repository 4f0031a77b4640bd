"""Back through the activation and the convolution of a slab of tokens, and the sums over tokens.

Two kernels, since dh reads dc of the tokens around: in one, each block would compute dc of its
neighbours' tokens again, each by nine products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.slabs import Window
from pvt_kernels.backends.triton.feed_forward.tiles import (
    CHANNELS,
    COLUMNS,
    CONV_SUMS,
    PLAIN_SUMS,
    WARPS,
    block_of_walk,
    flat,
    gelu,
    load_row,
    load_taps,
    relu,
    walk,
)
from pvt_kernels.backends.triton.launch import UNIT, Gpu, Launch

# blocks that a multiprocessor holds, by registers: of dc so many as the compiler may use
RESIDENT = 3
MAX_REGISTERS = 168


def parts_of(gpu: Gpu, window: Window, hidden: int, convolved: bool) -> int:
    """How many parts the sums of both kernels have."""
    return walk(gpu, window if convolved else flat(window), hidden, RESIDENT).parts


def dc_launch(
    gpu: Gpu,
    window: Window,
    above: int,
    below: int,
    h: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dc: Tensor,
    a: Tensor,
    sums: Tensor,
    activation: str,
    relu_before_conv: bool,
) -> Launch:
    """Writes dc and a and adds to sums, as `Kernels.dc` has them; weight and bias are contiguous.

    Without a convolution a is h.
    """
    D = dc.shape[1]
    tokens = window.tokens
    if weight is None:
        window = flat(window)
    walked = walk(gpu, window, D, RESIDENT)
    return Launch(
        depthwise_dc_kernel,
        blocks=walked.blocks,
        inputs={
            # pointers of the same type, where there is no convolution
            "h": h,
            "weight": h if weight is None else weight,
            "bias": h if bias is None else bias,
        },
        outputs={"dc": dc, "a": a, "sums": sums},
        numbers={
            **{"tokens": tokens, "rows": window.rows, "W": window.width, "D": D},
            **{"before": window.before, "after": window.after, "above": above, "below": below},
            **{"walked": walked.rows, "pitch": h.stride(0) // UNIT.value},
            "has_bias": int(bias is not None),
        },
        constants={
            "CONV": int(weight is not None),
            "GELU": int(activation == "gelu"),
            "RELU_BEFORE": int(relu_before_conv),
            "BLOCK_W": COLUMNS,
            "BLOCK_D": CHANNELS,
        },
        warps=WARPS,
        resident=RESIDENT,
        maxnreg=MAX_REGISTERS,
    )


def dh_launch(
    gpu: Gpu,
    window: Window,
    dc: Tensor,
    weight: Tensor,
    h: Tensor,
    sums: Tensor,
    relu_before_conv: bool,
) -> Launch:
    """Writes dh in place of h, as `Kernels.dh` has it, and adds to sums."""
    D = len(weight)
    walked = walk(gpu, window, D, RESIDENT)
    return Launch(
        depthwise_dh_kernel,
        blocks=walked.blocks,
        inputs={"dc": dc, "weight": weight},
        outputs={"h": h, "sums": sums},
        numbers={
            **{"rows": window.rows, "W": window.width, "D": D},
            **{"before": window.before, "after": window.after, "walked": walked.rows},
            "pitch": dc.stride(0) // UNIT.value,
        },
        constants={
            "RELU_BEFORE": int(relu_before_conv),
            "BLOCK_W": COLUMNS,
            "BLOCK_D": CHANNELS,
        },
        warps=WARPS,
        resident=RESIDENT,
    )


@triton.jit(
    do_not_specialize=[
        *("tokens", "rows", "W", "D", "before", "after", "above", "below", "walked", "pitch"),
        "has_bias",
    ]
)
def depthwise_dc_kernel(
    h,
    weight,
    bias,
    dc,
    a,
    sums,
    tokens: tl.int32,
    rows: tl.int32,
    W: tl.int32,
    D: tl.int32,
    before: tl.int32,
    after: tl.int32,
    above: tl.int32,
    below: tl.int32,
    walked: tl.int32,
    pitch: tl.int64,
    has_bias: tl.int32,
    CONV: tl.constexpr,
    GELU: tl.constexpr,
    RELU_BEFORE: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some rows of a tile of columns and channels, and what they add to the sums.

    h (images, before + rows + after, W, D), dc (images, rows, W, D), which holds da before, and a
    (images, rows - above - below, W, D) have tokens `pitch` units apart, sums as many channels.
    Without CONV all three are (tokens, D), in rows of W tokens of which the last is not full.
    """
    pitch *= UNIT
    i_part, image, first, o_w, o_d = block_of_walk(rows, walked, W, D, BLOCK_W, BLOCK_D)
    m_d = o_d < D
    mask = (o_w < W)[:, None] & m_d[None, :]
    end = tl.minimum(first + walked, rows)
    o_token = (image * rows + first) * W + o_w
    o_dc = o_token[:, None] * pitch + o_d[None, :]
    b_zero = tl.zeros((BLOCK_W, BLOCK_D), tl.float32)
    if CONV:
        b_t0, b_t1, b_t2 = load_taps(weight, 0, o_d, D)
        b_m0, b_m1, b_m2 = load_taps(weight, 1, o_d, D)
        b_b0, b_b1, b_b2 = load_taps(weight, 2, o_d, D)
        b_bias = tl.load(bias + o_d[None, :], mask=(m_d & (has_bias != 0))[None, :], other=0.0)
        b_bias = b_bias.to(tl.float32)
        height = before + rows + after
        row = first + before
        t0, t1, t2 = load_row(h, image, row - 1, height, o_w, o_d, W, D, pitch, RELU_BEFORE)
        m0, m1, m2 = load_row(h, image, row, height, o_w, o_d, W, D, pitch, RELU_BEFORE)
        # a has the same tokens but for those above and below
        p_a = a - (image * (above + below) + above) * W * pitch
        s_t0, s_t1, s_t2 = b_zero, b_zero, b_zero
        s_m0, s_m1, s_m2 = b_zero, b_zero, b_zero
        s_b0, s_b1, s_b2 = b_zero, b_zero, b_zero
        s_bias = b_zero
        for y in range(first, end):
            row += 1
            b0, b1, b2 = load_row(h, image, row, height, o_w, o_d, W, D, pitch, RELU_BEFORE)
            b_c = b_bias + b_t0 * t0 + b_t1 * t1 + b_t2 * t2
            b_c += b_m0 * m0 + b_m1 * m1 + b_m2 * m2
            b_c += b_b0 * b0 + b_b1 * b1 + b_b2 * b2
            b_da = tl.load(dc + o_dc, mask=mask, other=0.0).to(tl.float32)
            b_a, b_dc = _activation_backward(b_c, b_da, GELU)
            tl.store(dc + o_dc, b_dc.to(dc.dtype.element_ty), mask=mask)
            own = (y >= above) & (y < rows - below)
            tl.store(p_a + o_dc, b_a.to(a.dtype.element_ty), mask=mask & own)
            b_dc = tl.where(own, b_dc, 0.0)
            s_t0, s_t1, s_t2 = s_t0 + b_dc * t0, s_t1 + b_dc * t1, s_t2 + b_dc * t2
            s_m0, s_m1, s_m2 = s_m0 + b_dc * m0, s_m1 + b_dc * m1, s_m2 + b_dc * m2
            s_b0, s_b1, s_b2 = s_b0 + b_dc * b0, s_b1 + b_dc * b1, s_b2 + b_dc * b2
            s_bias += b_dc
            o_dc += W * pitch
            t0, t1, t2 = m0, m1, m2
            m0, m1, m2 = b0, b1, b2
        p_sums = sums + i_part.to(tl.int64) * CONV_SUMS * pitch + o_d
        _add(p_sums, s_t0, m_d)
        _add(p_sums + pitch, s_t1, m_d)
        _add(p_sums + 2 * pitch, s_t2, m_d)
        _add(p_sums + 3 * pitch, s_m0, m_d)
        _add(p_sums + 4 * pitch, s_m1, m_d)
        _add(p_sums + 5 * pitch, s_m2, m_d)
        _add(p_sums + 6 * pitch, s_b0, m_d)
        _add(p_sums + 7 * pitch, s_b1, m_d)
        _add(p_sums + 8 * pitch, s_b2, m_d)
        _add(p_sums + 9 * pitch, s_bias, m_d)
    else:
        p_dc = dc + o_dc
        p_h = h + o_token[:, None] * pitch + o_d[None, :]
        p_a = a + o_token[:, None] * pitch + o_d[None, :]
        s_bias = b_zero
        for _ in range(first, end):
            m_token = (o_token < tokens)[:, None] & mask
            b_h = tl.load(p_h, mask=m_token, other=0.0).to(tl.float32)
            b_da = tl.load(p_dc, mask=m_token, other=0.0).to(tl.float32)
            b_a, b_dc = _activation_backward(b_h, b_da, GELU)
            tl.store(p_dc, b_dc.to(dc.dtype.element_ty), mask=m_token)
            tl.store(p_a, b_a.to(a.dtype.element_ty), mask=m_token)
            s_bias += b_dc
            o_token += W
            p_h += W * pitch
            p_dc += W * pitch
            p_a += W * pitch
        _add(sums + i_part.to(tl.int64) * PLAIN_SUMS * pitch + o_d, s_bias, m_d)


@triton.jit(do_not_specialize=["rows", "W", "D", "before", "after", "walked", "pitch"])
def depthwise_dh_kernel(
    dc,
    weight,
    h,
    sums,
    rows: tl.int32,
    W: tl.int32,
    D: tl.int32,
    before: tl.int32,
    after: tl.int32,
    walked: tl.int32,
    pitch: tl.int64,
    RELU_BEFORE: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some rows of a tile of columns and channels, and what they add to the last of the sums.

    dc (images, before + rows + after, W, D) and h (images, rows, W, D), which holds dh after, have
    tokens `pitch` units apart, sums as many channels; weight (D, 1, 3, 3) is contiguous.
    """
    pitch *= UNIT
    i_part, image, first, o_w, o_d = block_of_walk(rows, walked, W, D, BLOCK_W, BLOCK_D)
    m_d = o_d < D
    mask = (o_w < W)[:, None] & m_d[None, :]
    # a token's dh has the first tap from the token down to its right, and so on
    b_b2, b_b1, b_b0 = load_taps(weight, 0, o_d, D)
    b_m2, b_m1, b_m0 = load_taps(weight, 1, o_d, D)
    b_t2, b_t1, b_t0 = load_taps(weight, 2, o_d, D)
    height = before + rows + after
    row = first + before
    t0, t1, t2 = load_row(dc, image, row - 1, height, o_w, o_d, W, D, pitch, 0)
    m0, m1, m2 = load_row(dc, image, row, height, o_w, o_d, W, D, pitch, 0)
    p_h = h + ((image * rows + first) * W + o_w)[:, None] * pitch + o_d[None, :]
    b_sum = tl.zeros((BLOCK_W, BLOCK_D), tl.float32)
    for _ in range(first, tl.minimum(first + walked, rows)):
        row += 1
        b0, b1, b2 = load_row(dc, image, row, height, o_w, o_d, W, D, pitch, 0)
        b_dh = b_t0 * t0 + b_t1 * t1 + b_t2 * t2
        b_dh += b_m0 * m0 + b_m1 * m1 + b_m2 * m2
        b_dh += b_b0 * b0 + b_b1 * b1 + b_b2 * b2
        if RELU_BEFORE:
            b_h = tl.load(p_h, mask=mask, other=0.0)
            b_dh = tl.where(b_h > 0.0, b_dh, 0.0)
        tl.store(p_h, b_dh.to(h.dtype.element_ty), mask=mask)
        b_sum += b_dh
        p_h += W * pitch
        t0, t1, t2 = m0, m1, m2
        m0, m1, m2 = b0, b1, b2
    # of columns beyond the last there are gradients too, of tokens that are not there
    b_sum = tl.where(mask, b_sum, 0.0)
    _add(sums + (i_part.to(tl.int64) * CONV_SUMS + CONV_SUMS - 1) * pitch + o_d, b_sum, m_d)


@triton.jit
def _activation_backward(b_c, b_da, GELU: tl.constexpr):
    """The activation of c, and the gradient of c."""
    if GELU:
        b_a, b_slope = gelu(b_c)
        b_dc = b_da * b_slope
    else:
        b_a = relu(b_c)
        b_dc = tl.where(b_c > 0.0, b_da, 0.0)
    return b_a, b_dc


@triton.jit
def _add(p_sums, b, m_d):
    """A tile's sum over its columns to what a part of the sums has."""
    before = tl.load(p_sums, mask=m_d, other=0.0)
    tl.store(p_sums, before + tl.sum(b, 0), mask=m_d)
