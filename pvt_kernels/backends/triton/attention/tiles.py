"""Tile sizes of the attention kernels: from a table, by the GPU, the dtype and the call's shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pvt_kernels.backends.triton.launch import (
    INTERPRETER,
    UNIT,
    WAVES,
    Gpu,
    block_of,
    cdiv,
    precision,
)

# of a call; D, the head dim, in units
SIZES = ("N", "M", "heads", "D")
# head dims that fill their block, whose kernels have no masks; every other width of a block is
# masked by a number, so that one kernel has them all
WHOLE_WIDTHS = (32, 64, 128)


def strides_of(*names: str) -> list[str]:
    """The kernels' arguments with the strides of tensors (B, N, heads, d)."""
    return [f"stride_{name}{axis}" for name in names for axis in "bnh"]


@dataclass(frozen=True)
class Tile:
    """What one block of threads works on at a time.

    Attributes:
        queries, keys: size of the tile of scores.
        warps, stages: threads / 32, and tiles in flight from device memory.
        resident: blocks that one multiprocessor holds at once, by registers and shared memory:
            of all versions of Triton that `make aot` compiles with, the fewest.
        maxnreg: registers that the compiler may give a thread, if it would take more and so leave
            room for fewer blocks.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    resident: int
    maxnreg: int | None = None


INTERPRETER_TILE = Tile(64, 64, 4, 1, 1)

# kernel: {matrix unit: {BLOCK_D: tiles, the largest first}}. `make aot` compiles all of these for
# every architecture, and fails where one spills registers or needs more memory than there is.
# "half" and "wide half" are fp16 and bf16; wide are the warp-group instructions of compute
# capability 9.0, which keep less in registers and come with 227 KB of shared memory.
# "fp32" has no tensor cores: Triton then keeps a product's factors in registers.
TILES: dict[str, dict[str, dict[int, tuple[Tile, ...]]]] = {
    "forward": {
        "half": {
            32: (Tile(128, 64, 8, 2, 2), Tile(64, 64, 4, 3, 3)),
            64: (Tile(128, 64, 8, 3, 1), Tile(64, 64, 4, 3, 2)),
            128: (Tile(128, 32, 8, 3, 1), Tile(64, 32, 4, 2, 2)),
            256: (Tile(64, 32, 8, 2, 1),),
        },
        "wide half": {
            32: (Tile(128, 64, 8, 3, 2), Tile(64, 32, 4, 3, 6)),
            64: (Tile(128, 64, 8, 3, 2, 128), Tile(64, 64, 4, 3, 3)),
            128: (Tile(128, 64, 8, 2, 1), Tile(64, 64, 4, 2, 2)),
            256: (Tile(64, 32, 8, 2, 1),),
        },
        "tf32": {
            32: (Tile(128, 32, 8, 2, 2), Tile(64, 32, 4, 2, 4)),
            64: (Tile(128, 32, 8, 2, 1), Tile(64, 32, 4, 3, 2)),
            128: (Tile(64, 32, 8, 2, 1),),
            256: (Tile(32, 16, 8, 2, 1),),
        },
        "fp32": {
            32: (Tile(64, 32, 8, 2, 1),),
            64: (Tile(32, 32, 8, 2, 1),),
            128: (Tile(32, 32, 16, 1, 2),),
        },
    },
    "dq": {
        "half": {
            32: (Tile(128, 64, 8, 3, 1), Tile(64, 64, 4, 3, 3)),
            64: (Tile(128, 32, 8, 3, 1), Tile(64, 32, 4, 3, 3)),
            128: (Tile(64, 64, 8, 2, 1),),
            256: (Tile(32, 32, 8, 2, 1),),
        },
        "wide half": {
            32: (Tile(128, 64, 8, 3, 2), Tile(64, 64, 4, 3, 4)),
            64: (Tile(128, 64, 8, 3, 2, 128), Tile(64, 64, 4, 2, 3)),
            128: (Tile(128, 64, 8, 2, 1), Tile(64, 32, 4, 2, 2)),
            256: (Tile(64, 16, 8, 2, 1),),
        },
        "tf32": {
            32: (Tile(128, 32, 8, 2, 1),),
            64: (Tile(128, 16, 8, 2, 1), Tile(32, 32, 4, 2, 2)),
            128: (Tile(32, 32, 8, 2, 1),),
            256: (Tile(16, 16, 8, 2, 1),),
        },
        "fp32": {
            32: (Tile(64, 32, 8, 2, 1),),
            64: (Tile(32, 32, 8, 2, 1),),
            128: (Tile(16, 16, 8, 1, 1),),
        },
    },
    "dkdv": {
        "half": {
            32: (Tile(64, 64, 4, 3, 2),),
            64: (Tile(32, 128, 8, 3, 1),),
            128: (Tile(16, 128, 8, 2, 1),),
            256: (Tile(32, 32, 8, 2, 1),),
        },
        "wide half": {
            32: (Tile(32, 128, 8, 3, 2, 128),),
            64: (Tile(32, 128, 8, 3, 2, 128),),
            128: (Tile(32, 128, 8, 2, 1),),
            256: (Tile(32, 32, 8, 2, 1),),
        },
        "tf32": {
            32: (Tile(32, 128, 8, 2, 1),),
            64: (Tile(16, 64, 4, 2, 2),),
            128: (Tile(32, 32, 8, 2, 1),),
            256: (Tile(16, 16, 8, 2, 1),),
        },
        "fp32": {
            32: (Tile(32, 32, 8, 2, 2),),
            64: (Tile(32, 32, 8, 2, 1),),
            128: (Tile(16, 32, 8, 1, 2),),
        },
    },
}
# fp16 and bf16 in compute capability 10.0 and 11.0, which keep sums in a memory of their own
TENSOR_MEMORY_TILES = {"forward": {64: (Tile(128, 64, 8, 2, 2, 128), Tile(64, 64, 4, 3, 3))}}
for kernel, units in TILES.items():
    units["tensor memory half"] = units["wide half"] | TENSOR_MEMORY_TILES.get(kernel, {})


def block_d(head_dim: int) -> int:
    """The width of a tile of one head: head_dim, or the table's next."""
    return max(32, block_of(head_dim))


def head_dim_arguments(head_dim: int) -> tuple[dict[str, int], dict[str, int | bool]]:
    """The kernels' numbers and constants that say how wide a head is, a multiple of UNIT."""
    constants = {"WHOLE": head_dim in WHOLE_WIDTHS, "BLOCK_D": block_d(head_dim)}
    return {"D": head_dim // UNIT.value}, constants


def tile_of(
    kernel: str, gpu: Gpu, dtype: torch.dtype, head_dim: int, heads: int, queries: int
) -> Tile:
    """The largest of the table's tiles with which the blocks are WAVES waves, or the smallest.

    Args:
        kernel: "forward", "dq" or "dkdv".
        heads: of all images together.
    """
    if gpu == INTERPRETER:
        return INTERPRETER_TILE
    tiles = TILES[kernel][matrix_unit(gpu, dtype)][block_d(head_dim)]
    # what is compiled for all other widths is compiled once
    return filling(tiles if head_dim in WHOLE_WIDTHS else tiles[-1:], gpu, heads, queries)


def filling(tiles: tuple[Tile, ...], gpu: Gpu, heads: int, queries: int) -> Tile:
    """The first tile with which the blocks are WAVES waves, or the last."""
    for tile in tiles:
        blocks = cdiv(queries, tile.queries) * heads
        if blocks >= WAVES * gpu.multiprocessors * tile.resident:
            return tile
    return tiles[-1]


def matrix_unit(gpu: Gpu, dtype: torch.dtype) -> str:
    """Which of the table's columns of instructions multiplies this dtype on this GPU."""
    if dtype == torch.float32:
        return "tf32" if precision(dtype) == "tf32" else "fp32"
    if 100 <= gpu.arch < 120:
        return "tensor memory half"
    return "wide half" if 90 <= gpu.arch < 100 else "half"
