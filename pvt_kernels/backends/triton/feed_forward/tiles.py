"""What the feed-forward's kernels share: their tiles, and how they walk over a map.

A block has a tile of neighbouring columns and channels, and walks down some rows of the map. Of the
three rows that the convolution reads it keeps two, with their neighbours to both sides, so that
each row is loaded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from pvt_kernels.backends import slabs
from pvt_kernels.backends.slabs import Window
from pvt_kernels.backends.triton.launch import WAVES, Gpu, cdiv

# of a block; with its threads that are 4 channels each
COLUMNS, CHANNELS = 16, 32
WARPS = 4
# as kernels take them
CONV_SUMS, PLAIN_SUMS = tl.constexpr(slabs.CONV_SUMS), tl.constexpr(slabs.PLAIN_SUMS)
# fewer rows for a block: those above and below, which it loads too, would be as many
LEAST_ROWS = 4


@dataclass(frozen=True)
class Walk:
    """How a window is divided among blocks.

    Attributes:
        window: what is computed.
        rows: down which a block walks.
        blocks: how many there are.
        parts: of them, how many have the same channels.
    """

    window: Window
    rows: int
    blocks: int
    parts: int


def walk(gpu: Gpu, window: Window, hidden: int, resident: int) -> Walk:
    """So many rows a block that there are WAVES waves of blocks, of which `resident` are held."""
    strips = window.images * cdiv(window.width, COLUMNS)
    channel_tiles = cdiv(hidden, CHANNELS)
    wanted = cdiv(WAVES * gpu.multiprocessors * resident, max(1, strips * channel_tiles))
    rows = min(window.rows, max(LEAST_ROWS, cdiv(window.rows, wanted)))
    parts = strips * cdiv(window.rows, rows)
    return Walk(window, rows, parts * channel_tiles, parts)


def flat(window: Window) -> Window:
    """Tokens that have no neighbours, as rows of a tile's columns; the last may be longer."""
    return Window(1, cdiv(window.tokens, COLUMNS), COLUMNS)


@triton.jit
def block_of_walk(rows, walked, W, D, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr):
    """The block's part, image, first row and columns and channels; channels come the fastest."""
    channel_tiles = tl.cdiv(D, BLOCK_D)
    i_part = tl.program_id(0) // channel_tiles
    o_d = tl.program_id(0) % channel_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    strips = tl.cdiv(W, BLOCK_W)
    o_w = i_part % strips * BLOCK_W + tl.arange(0, BLOCK_W)
    pieces = tl.cdiv(rows, walked)
    first = i_part // strips % pieces * walked
    image = (i_part // strips // pieces).to(tl.int64)
    return i_part, image, first, o_w, o_d


@triton.jit
def load_row(map_, image, row, height, o_w, o_d, W, D, pitch, RELU: tl.constexpr):
    """A row's columns with those to their left and right, in fp32; zeros beyond the map's edges."""
    inside = (row >= 0) & (row < height)
    m_d = inside & (o_d < D)[None, :]
    p_row = map_ + (image * height + row) * W * pitch + o_d[None, :]
    b_left = _load_columns(p_row, o_w - 1, m_d, W, pitch, RELU)
    b_middle = _load_columns(p_row, o_w, m_d, W, pitch, RELU)
    b_right = _load_columns(p_row, o_w + 1, m_d, W, pitch, RELU)
    return b_left, b_middle, b_right


@triton.jit
def _load_columns(p_row, o_w, m_d, W, pitch, RELU: tl.constexpr):
    mask = ((o_w >= 0) & (o_w < W))[:, None] & m_d
    b = tl.load(p_row + o_w.to(tl.int64)[:, None] * pitch, mask=mask, other=0.0).to(tl.float32)
    return relu(b) if RELU else b


@triton.jit
def load_taps(weight, row: tl.constexpr, o_d, D):
    """[1, channels] of the three taps of a row of the weight (D, 1, 3, 3), in fp32."""
    p_taps = weight + o_d[None, :] * 9 + row * 3
    m_d = (o_d < D)[None, :]
    b_0 = tl.load(p_taps, mask=m_d, other=0.0).to(tl.float32)
    b_1 = tl.load(p_taps + 1, mask=m_d, other=0.0).to(tl.float32)
    b_2 = tl.load(p_taps + 2, mask=m_d, other=0.0).to(tl.float32)
    return b_0, b_1, b_2


@triton.jit
def relu(b):
    """That of NaN is NaN."""
    return tl.where(b < 0.0, 0.0, b)


@triton.jit
def gelu(b_c):
    """Of fp32, and its derivative."""
    b_cdf = 0.5 + 0.5 * tl.math.erf(b_c * 0.7071067811865476)
    b_density = tl.exp(-0.5 * b_c * b_c) * 0.3989422804014327
    return b_c * b_cdf, b_cdf + b_c * b_density
