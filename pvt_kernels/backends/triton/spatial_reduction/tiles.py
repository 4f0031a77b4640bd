"""Tile sizes of the spatial reduction's matrix products, and rows of a block of its LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pvt_kernels.backends.triton.launch import INTERPRETER, Gpu, block_of, precision

MAP = ("rows", "H", "W")
# of a block of the LayerNorm, unless a row has more: few, since PVT's maps have 950 rows an image
NORM_ELEMENTS = 256
# its 128 threads in the 2048 of a multiprocessor
NORM_RESIDENT = 16
# up to here PVT's maps of 1900 rows are two waves of blocks of dx, with 32 rows a block
MANY_BLOCKS_CHANNELS = 128


@dataclass(frozen=True)
class Tile:
    """What one block of threads computes.

    Attributes:
        rows, outputs: size of the tile of the result.
        depth: terms of its sums that are loaded at a time.
        warps, stages: threads / 32, and tiles in flight from device memory.
        resident: blocks that one multiprocessor holds at once.
    """

    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int
    resident: int


# few large blocks, since the interpreter takes about as long for a small one
INTERPRETER_TILE = Tile(128, 256, 256, warps=4, stages=1, resident=1)


def product_tile(gpu: Gpu, dtype: torch.dtype) -> Tile:
    """Of the convolution and of the weight's gradient."""
    if gpu == INTERPRETER:
        return INTERPRETER_TILE
    if dtype != torch.float32:
        return Tile(64, 64, 64, warps=4, stages=3, resident=4)
    if precision(dtype) == "tf32":
        return Tile(64, 64, 32, warps=4, stages=3, resident=4)
    # without tensor cores a product keeps its factors in registers
    return Tile(32, 32, 32, warps=4, stages=2, resident=6)


def dx_product_tile(gpu: Gpu, dtype: torch.dtype, channels: int) -> Tile:
    """Of dx, whose blocks each compute dz of their rows: many outputs, so that few do it again.

    Where rows are wide, more of them share what a block reads of the weight.
    """
    if gpu == INTERPRETER:
        return INTERPRETER_TILE
    narrow = channels <= MANY_BLOCKS_CHANNELS
    if dtype == torch.float32 and precision(dtype) == "ieee":
        return Tile(32, 64, 32, warps=8, stages=2, resident=2)
    if not narrow:
        return Tile(64, 128, 32, warps=8, stages=3, resident=2)
    if dtype == torch.float32:
        return Tile(32, 128, 32, warps=4, stages=3, resident=3)
    # where one step takes all channels, there is no next one to hold in registers meanwhile
    return Tile(32, 128, 64, warps=4, stages=2, resident=5 if channels <= 64 else 2)


def norm_block(channels: int) -> tuple[int, int]:
    """Rows and channels that one block of the LayerNorm has at once."""
    width = max(32, block_of(channels))
    return max(1, NORM_ELEMENTS // width), width
