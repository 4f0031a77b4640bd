"""Adds partial results in a fixed order, so that a sum does not differ from run to run."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        *("map_parts", "map_size", "map_rows", "map_inner", "map_outs", "map_width"),
        *("stride_outer", "stride_inner", "stride_width"),
        *("stack_parts", "stack_size", "stack_outs", "stack_rows", "stack_width"),
        "stride_row",
    ]
)
def fold_kernel(
    map_partials,
    map_out_0,
    map_out_1,
    stack_partials,
    stack_out_0,
    stack_out_1,
    stack_out_2,
    map_parts: tl.int32,
    map_size: tl.int64,
    map_rows: tl.int32,
    map_inner: tl.int32,
    map_outs: tl.int32,
    map_width: tl.int32,
    stride_outer: tl.int64,
    stride_inner: tl.int64,
    stride_width: tl.int64,
    stack_parts: tl.int32,
    stack_size: tl.int64,
    stack_outs: tl.int32,
    stack_rows: tl.int32,
    stack_width: tl.int32,
    stride_row: tl.int64,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """The sums of one map and of a stack of up to three.

    The map: map_partials (map_parts, map_rows, map_width), each part `map_size` numbers; row i goes
    to i // map_inner * stride_outer + i % map_inner * stride_inner of map_out_0, its numbers
    stride_width apart, or of two map_outs to the second from row map_inner on. The stack:
    stack_partials (stack_parts, outs, stack_rows, stack_width), each part `stack_size` numbers; the
    rows of an out are stride_row apart. All partials are in fp32.
    """
    i_block = tl.program_id(0)
    map_pieces = tl.cdiv(map_width, BLOCK_WIDTH)
    map_blocks = tl.cdiv(map_rows, BLOCK_ROWS) * map_pieces
    # [BLOCK_ROWS] and [BLOCK_WIDTH] of what a block sums
    if i_block < map_blocks:
        o_r = i_block // map_pieces * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        o_w = i_block % map_pieces * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        m_r, m_w = o_r < map_rows, o_w < map_width
        b_sum = _sum_of_parts(
            map_partials, o_r, o_w, m_r, m_w, map_width, map_size, map_parts, BLOCK_PARTS
        )
        o_out = o_r // map_inner * stride_outer + o_r % map_inner * stride_inner
        o_out = o_out[:, None] + o_w.to(tl.int64)[None, :] * stride_width
        second = (map_outs > 1) & (o_r >= map_inner)
        _store(map_out_0 + o_out, b_sum, m_r & ~second, m_w)
        _store(map_out_1 + o_out, b_sum, m_r & second, m_w)
    else:
        i_piece = i_block - map_blocks
        stack_pieces = tl.cdiv(stack_width, BLOCK_WIDTH)
        o_r = i_piece // stack_pieces * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        o_w = i_piece % stack_pieces * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        i_out = o_r // stack_rows
        m_w = o_w < stack_width
        b_sum = _sum_of_parts(
            stack_partials,
            o_r,
            o_w,
            i_out < stack_outs,
            m_w,
            stack_width,
            stack_size,
            stack_parts,
            BLOCK_PARTS,
        )
        o_out = (o_r % stack_rows * stride_row)[:, None] + o_w[None, :]
        _store(stack_out_0 + o_out, b_sum, i_out == 0, m_w)
        _store(stack_out_1 + o_out, b_sum, (i_out == 1) & (stack_outs > 1), m_w)
        _store(stack_out_2 + o_out, b_sum, (i_out == 2) & (stack_outs > 2), m_w)


@triton.jit
def _sum_of_parts(partials, o_r, o_w, m_r, m_w, width, size, parts, BLOCK_PARTS: tl.constexpr):
    """[rows, width]: the sum over the parts, which are `size` numbers apart."""
    o_p = tl.arange(0, BLOCK_PARTS)
    m_rw = m_r[:, None] & m_w[None, :]
    p_rows = partials + (o_r.to(tl.int64) * width)[:, None] + o_w[None, :]
    p_partials = p_rows[None, :, :] + o_p.to(tl.int64)[:, None, None] * size
    b_sum = tl.zeros((m_r.shape[0], m_w.shape[0]), tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        mask = (start + o_p < parts)[:, None, None] & m_rw[None, :, :]
        b_sum += tl.sum(tl.load(p_partials, mask=mask, other=0.0), 0)
        p_partials += BLOCK_PARTS * size
    return b_sum


@triton.jit
def _store(pointers, b_sum, m_r, m_w):
    """Write the rows and numbers that the masks keep, in the dtype of what they are written to."""
    mask = m_r[:, None] & m_w[None, :]
    tl.store(pointers, b_sum.to(pointers.dtype.element_ty), mask=mask)
