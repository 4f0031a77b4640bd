"""Tile sizes of the spatial reduction's matrix products, and rows of a block of its LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pvt_kernels.ops.triton_launch import INTERPRETER, Gpu, block_of, precision

MAP = ("rows", "H", "W")
# of a block of the LayerNorm, unless a row has more: few, since PVT's maps have 950 rows an image
NORM_ELEMENTS = 256


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


def product_tile(gpu: Gpu, dtype: torch.dtype, rows: int = 64) -> Tile:
    """For every product here; with fewer rows there are more blocks."""
    if gpu == INTERPRETER:
        return INTERPRETER_TILE
    if dtype != torch.float32:
        return Tile(rows, 64, 64, warps=4, stages=3, resident=4)
    if precision(dtype) == "tf32":
        return Tile(rows, 64, 32, warps=4, stages=3, resident=4)
    # without tensor cores a product keeps its factors in registers
    return Tile(32, 32, 32, warps=4, stages=2, resident=8)


def norm_rows(C: int) -> int:
    """Rows that one block normalises at once."""
    return max(1, NORM_ELEMENTS // block_of(C))
