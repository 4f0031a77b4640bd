"""How many blocks the CUDA kernels of a layer have on a V100: the formulas of csrc/cuda/*.cu.

PVT's heads are 64 wide. Kernels without products, which the table of compiled kernels leaves out,
are left out here too.
"""

from __future__ import annotations

import torch

from pvt_kernels.benchmarking.shapes import LayerShape

# of a block's queries or keys; of a product's tile
ATTENTION_ROWS = {torch.float16: 128, torch.float32: 64}
ROWS, COLUMNS = 64, 64
# the steps in which a product's sum is taken, and dk and dv pass over the queries
PRODUCT_STEP = 32
QUERY_STEP = {torch.float16: 32, torch.float32: 16}
# blocks that a multiprocessor holds for which the launchers split sums into two waves
ASSUMED_PRODUCT, ASSUMED_DKDV = 3, 2
WAVES = 2
# what it holds of each kernel, by their registers and shared memory for sm_70 as compiled:
# benchmarks/results/cuda-kernels.md
RESIDENT = {
    torch.float16: {
        "attention_forward": 2,
        "attention_dq": 2,
        "attention_dkdv": 2,
        "convolution": 3,
        "dx": 4,
        "dweight": 3,
    },
    torch.float32: {
        "attention_forward": 2,
        "attention_dq": 2,
        "attention_dkdv": 2,
        "convolution": 3,
        "dx": 3,
        "dweight": 4,
    },
}


def blocks_of_a_layer(
    shape: LayerShape, dtype: torch.dtype, multiprocessors: int
) -> dict[str, int]:
    """By the names of model.py's costs; nothing for bfloat16, which a V100 does not have."""
    if dtype not in RESIDENT:
        return {}
    units = shape.batch * shape.heads
    rows = ATTENTION_ROWS[dtype]
    queries, keys = _tiles(shape.queries, rows), _tiles(shape.keys, rows)
    splits = dkdv_splits(shape, dtype, multiprocessors)
    blocks = {
        "attention_forward": queries * units,
        "attention_dq": queries * units,
        "attention_dkdv": keys * units * splits,
    }
    if shape.sr_ratio > 1:
        patches, channels = shape.batch * shape.keys, shape.dim
        depth = shape.sr_ratio**2 * channels
        blocks |= {
            "convolution": _product_tiles(patches, channels)
            * product_splits(patches, channels, depth, multiprocessors),
            "dx": _product_tiles(patches, depth),
            "dweight": _product_tiles(depth, channels)
            * product_splits(depth, channels, patches, multiprocessors),
        }
    return blocks


def dkdv_splits(shape: LayerShape, dtype: torch.dtype, multiprocessors: int) -> int:
    """Of the queries, as attention_backward.cu splits them."""
    tiles = _tiles(shape.keys, ATTENTION_ROWS[dtype]) * shape.batch * shape.heads
    wanted = _tiles(WAVES * ASSUMED_DKDV * multiprocessors, tiles)
    return _even_splits(_tiles(shape.queries, QUERY_STEP[dtype]), wanted)


def product_splits(rows: int, columns: int, depth: int, multiprocessors: int) -> int:
    """Of a product's sums, as spatial_reduction_launch.cuh splits them."""
    wanted = _tiles(WAVES * ASSUMED_PRODUCT * multiprocessors, _product_tiles(rows, columns))
    return _even_splits(_tiles(depth, PRODUCT_STEP), wanted)


def _even_splits(steps: int, wanted: int) -> int:
    return _tiles(steps, _tiles(steps, min(wanted, steps)))


def _product_tiles(rows: int, columns: int) -> int:
    return _tiles(rows, ROWS) * _tiles(columns, COLUMNS)


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)
