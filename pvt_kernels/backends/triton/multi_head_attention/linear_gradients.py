"""The weights' and biases' gradients of the two narrow layers around the attention, in one pass.

They are products with a sum over all tokens, 121,600 of them in PVT's first stage for 64 x 64
results: one tile for each layer, so that the tokens are split, and the biases' sums are taken from
what the products have loaded anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels.backends.triton.launch import (
    INTERPRETER,
    UNIT,
    Gpu,
    Launch,
    cdiv,
    fold,
    precision,
    strides,
)

WIDTHS = (32, 64, 128)
# with fewer a product's usual tiles are as many blocks
LEAST_ROWS = 2**14
LAYERS = 2


@dataclass(frozen=True)
class Tile:
    """Rows that are loaded at a time, threads / 32, tiles in flight, blocks a multiprocessor.

    Of blocks so many as have about 100 KB of rows on the way.
    """

    rows: int
    warps: int
    stages: int
    resident: int


TILES = {32: Tile(128, 4, 3, 2), 64: Tile(64, 4, 3, 2), 128: Tile(64, 8, 3, 1)}


def pays(gpu: Gpu, dtype: torch.dtype, channels: int, rows: int) -> bool:
    """Whether PyTorch's products and sums of so many rows are left to this kernel."""
    half = dtype != torch.float32
    return gpu != INTERPRETER and half and channels in WIDTHS and rows >= LEAST_ROWS


def linear_gradients_launches(
    gpu: Gpu, layers: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[Launch], list[tuple[Tensor, Tensor]]]:
    """Launches for two layers, and where each one's gradients of weight and bias will be.

    Args:
        gpu: what they are for.
        layers: of each the gradient of its results and its inputs, wide rows (rows, C) both.
    """
    rows, C = layers[0][0].shape
    tile = TILES[C]
    # one wave: these are bound by memory, and so many blocks keep it busy
    splits = min(cdiv(rows, tile.rows), gpu.multiprocessors * tile.resident // LAYERS)
    (dresults_0, inputs_0), (dresults_1, inputs_1) = layers
    weight_partials = inputs_0.new_empty(splits, LAYERS, C, C, dtype=torch.float32)
    bias_partials = inputs_0.new_empty(splits, LAYERS, 1, C, dtype=torch.float32)
    dweights = [inputs_0.new_empty(C, C) for _ in layers]
    dbiases = [inputs_0.new_empty(C) for _ in layers]
    tensors = {
        "dresults_0": dresults_0,
        "inputs_0": inputs_0,
        "dresults_1": dresults_1,
        "inputs_1": inputs_1,
    }
    launch = Launch(
        linear_gradients_kernel,
        blocks=LAYERS * splits,
        inputs=tensors,
        outputs={"weight_partials": weight_partials, "bias_partials": bias_partials},
        numbers={"rows": rows, "splits": splits, **strides("r", **tensors)},
        constants={
            "BLOCK_C": C,
            "BLOCK_K": tile.rows,
            "PRECISION": precision(inputs_0.dtype),
        },
        warps=tile.warps,
        stages=tile.stages,
        resident=tile.resident,
    )
    outs = [dbias.view(1, C) for dbias in dbiases]
    return (
        [launch, fold(gpu, weight_partials, dweights, bias_partials, outs)],
        list(zip(dweights, dbiases, strict=True)),
    )


@triton.jit(
    do_not_specialize=[
        *("rows", "splits", "stride_dresults_0r", "stride_inputs_0r"),
        *("stride_dresults_1r", "stride_inputs_1r"),
    ]
)
def linear_gradients_kernel(
    dresults_0,
    inputs_0,
    dresults_1,
    inputs_1,
    weight_partials,
    bias_partials,
    rows: tl.int32,
    splits: tl.int32,
    stride_dresults_0r: tl.int64,
    stride_inputs_0r: tl.int64,
    stride_dresults_1r: tl.int64,
    stride_inputs_1r: tl.int64,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One layer's gradients over one split of the rows: partial sums.

    Rows have adjacent channels and strides in units; weight_partials (splits, 2, C, C) and
    bias_partials (splits, 2, 1, C) are contiguous.
    """
    i_s = tl.program_id(0) // 2
    i_layer = tl.program_id(0) % 2
    o_c = tl.arange(0, BLOCK_C)
    o_k = tl.arange(0, BLOCK_K)
    if i_layer == 0:
        p_dresults, p_inputs = dresults_0, inputs_0
        stride_d, stride_i = stride_dresults_0r * UNIT, stride_inputs_0r * UNIT
    else:
        p_dresults, p_inputs = dresults_1, inputs_1
        stride_d, stride_i = stride_dresults_1r * UNIT, stride_inputs_1r * UNIT

    per_split = tl.cdiv(tl.cdiv(rows, BLOCK_K), splits) * BLOCK_K
    end = tl.minimum((i_s + 1) * per_split, rows)
    # [BLOCK_C results, BLOCK_C inputs], and [BLOCK_K, BLOCK_C], which the end sums up
    b_dw = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    b_db = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for start in range(i_s * per_split, end, BLOCK_K):
        o_row = (start + o_k).to(tl.int64)[:, None]
        m_k = (start + o_k < end)[:, None]
        b_d = tl.load(p_dresults + o_row * stride_d + o_c[None, :], mask=m_k, other=0.0)
        b_i = tl.load(p_inputs + o_row * stride_i + o_c[None, :], mask=m_k, other=0.0)
        b_dw = tl.dot(tl.trans(b_d), b_i, b_dw, input_precision=PRECISION)
        b_db += b_d.to(tl.float32)

    first = tl.program_id(0).to(tl.int64)
    o_cc = o_c[:, None] * BLOCK_C + o_c[None, :]
    tl.store(weight_partials + first * (BLOCK_C * BLOCK_C) + o_cc, b_dw)
    tl.store(bias_partials + first * BLOCK_C + o_c, tl.sum(b_db, 0))
