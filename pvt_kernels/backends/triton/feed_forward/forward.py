"""The depthwise convolution, 3 x 3, of a slab of tokens, and the activation of what it gives."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.slabs import Window
from pvt_kernels.backends.triton.feed_forward.tiles import (
    CHANNELS,
    COLUMNS,
    WARPS,
    block_of_walk,
    gelu,
    load_row,
    load_taps,
    relu,
    walk,
)
from pvt_kernels.backends.triton.launch import UNIT, Gpu, Launch

# blocks that a multiprocessor holds, by registers
RESIDENT = 4


def forward_launch(
    gpu: Gpu,
    window: Window,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    activation: str,
    relu_before_conv: bool,
) -> Launch:
    """Writes a of the window, as `Kernels.forward` has it; the weight and bias are contiguous."""
    D = len(weight)
    walked = walk(gpu, window, D, RESIDENT)
    return Launch(
        depthwise_forward_kernel,
        blocks=walked.blocks,
        inputs={"h": h, "weight": weight, "bias": weight if bias is None else bias},
        outputs={"a": a},
        numbers={
            **{"rows": window.rows, "W": window.width, "D": D},
            **{"before": window.before, "after": window.after, "walked": walked.rows},
            **{"pitch": h.stride(0) // UNIT.value, "has_bias": int(bias is not None)},
        },
        constants={
            "GELU": int(activation == "gelu"),
            "RELU_BEFORE": int(relu_before_conv),
            "BLOCK_W": COLUMNS,
            "BLOCK_D": CHANNELS,
        },
        warps=WARPS,
        resident=RESIDENT,
    )


@triton.jit(
    do_not_specialize=["rows", "W", "D", "before", "after", "walked", "pitch", "has_bias"],
)
def depthwise_forward_kernel(
    h,
    weight,
    bias,
    a,
    rows: tl.int32,
    W: tl.int32,
    D: tl.int32,
    before: tl.int32,
    after: tl.int32,
    walked: tl.int32,
    pitch: tl.int64,
    has_bias: tl.int32,
    GELU: tl.constexpr,
    RELU_BEFORE: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some rows of a tile of columns and channels.

    h (images, before + rows + after, W, D) and a (images, rows, W, D) have tokens `pitch` units
    apart; weight (D, 1, 3, 3), bias (D,) are contiguous.
    """
    pitch *= UNIT
    _walk, image, first, o_w, o_d = block_of_walk(rows, walked, W, D, BLOCK_W, BLOCK_D)
    m_d = o_d < D
    b_t0, b_t1, b_t2 = load_taps(weight, 0, o_d, D)
    b_m0, b_m1, b_m2 = load_taps(weight, 1, o_d, D)
    b_b0, b_b1, b_b2 = load_taps(weight, 2, o_d, D)
    b_bias = tl.load(bias + o_d[None, :], mask=(m_d & (has_bias != 0))[None, :], other=0.0)
    b_bias = b_bias.to(tl.float32)

    height = before + rows + after
    row = first + before
    t0, t1, t2 = load_row(h, image, row - 1, height, o_w, o_d, W, D, pitch, RELU_BEFORE)
    m0, m1, m2 = load_row(h, image, row, height, o_w, o_d, W, D, pitch, RELU_BEFORE)
    p_a = a + ((image * rows + first) * W + o_w)[:, None] * pitch + o_d[None, :]
    mask = (o_w < W)[:, None] & m_d[None, :]
    for _ in range(first, tl.minimum(first + walked, rows)):
        row += 1
        b0, b1, b2 = load_row(h, image, row, height, o_w, o_d, W, D, pitch, RELU_BEFORE)
        b_c = b_bias + b_t0 * t0 + b_t1 * t1 + b_t2 * t2
        b_c += b_m0 * m0 + b_m1 * m1 + b_m2 * m2
        b_c += b_b0 * b0 + b_b1 * b1 + b_b2 * b2
        if GELU:
            b_a, _slope = gelu(b_c)
        else:
            b_a = relu(b_c)
        tl.store(p_a, b_a.to(a.dtype.element_ty), mask=mask)
        p_a += W * pitch
        t0, t1, t2 = m0, m1, m2
        m0, m1, m2 = b0, b1, b2
