"""Adds partial results in a fixed order, so that a sum does not differ from run to run."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["size", "stride", "parts"])
def fold_kernel(
    partials,
    out,
    size: tl.int64,
    stride: tl.int64,
    parts: tl.int32,
    BLOCK_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (size,) = the sum of the parts, each `size` numbers in fp32, `stride` after the last."""
    o_s = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_p = tl.arange(0, BLOCK_PARTS)
    p_partials = partials + o_p.to(tl.int64)[:, None] * stride + o_s[None, :]
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        mask = (start + o_p < parts)[:, None] & (o_s < size)[None, :]
        b_sum += tl.sum(tl.load(p_partials, mask=mask, other=0.0), 0)
        p_partials += BLOCK_PARTS * stride
    tl.store(out + o_s, b_sum.to(out.dtype.element_ty), mask=o_s < size)
