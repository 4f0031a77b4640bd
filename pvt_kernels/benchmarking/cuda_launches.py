"""How many blocks the CUDA kernels of a layer have on a V100, as csrc/cuda/blocks.h counts them.

Kernels without products, which the table of compiled kernels leaves out, are left out here too.
"""

from __future__ import annotations

import torch

from pvt_kernels._C import cuda
from pvt_kernels.benchmarking.shapes import LayerShape

# what model.py calls those that it calls otherwise
COSTS = {
    "attention_dk_dv": "attention_dkdv",
    "attention_dq_dk_dv": "attention_dqdkdv",
    "spatial_reduction_product": "convolution",
    "spatial_reduction_dx": "dx",
    "spatial_reduction_dweight": "dweight",
}


def blocks_of_a_layer(
    shape: LayerShape, dtype: torch.dtype, multiprocessors: int
) -> dict[str, tuple[int, int]]:
    """By the names of model.py's costs: blocks, and those a multiprocessor holds at least.

    Nothing for bfloat16, which a V100 does not have.
    """
    if dtype == torch.bfloat16:
        return {}
    B, heads = shape.batch, shape.heads
    name, device = str(dtype).removeprefix("torch."), 0
    head_dim = shape.dim // heads
    attention = (B, shape.queries, shape.keys, heads, head_dim, name, head_dim**-0.5, device)
    reduction = None
    if shape.sr_ratio > 1:
        sizes = B, shape.height, shape.width, shape.dim, shape.sr_ratio
        reduction = (*sizes, name, name, 1e-6, device)
    found = cuda.blocks_on_a_v100(attention, reduction, multiprocessors)
    return {COSTS.get(kernel, kernel): counts for kernel, counts in found.items()}
