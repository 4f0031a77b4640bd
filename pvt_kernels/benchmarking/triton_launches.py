"""What the Triton kernels of a layer would be launched with, on any GPU and without one."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from pvt_kernels.backends import slabs
from pvt_kernels.backends.triton import (
    attention,
    feed_forward,
    multi_head_attention,
    spatial_reduction,
)
from pvt_kernels.backends.triton.launch import Gpu, Launch
from pvt_kernels.backends.triton.multi_head_attention import linear_gradients
from pvt_kernels.benchmarking.shapes import LayerShape

# of PVTv2's and SegFormer's first stages; the others have less
MLP_RATIO = 8
# of an H100, for what is launched on one
L2_BYTES = 50 * 2**20


def launches_of_a_layer(shape: LayerShape, dtype: torch.dtype, gpu: Gpu) -> dict[str, Launch]:
    """Forward and backward of every op, on tensors of device meta, by the names of their costs."""
    named = {}
    for op, launches in (
        ("multi_head_attention", fused_launches(shape, dtype, gpu)),
        ("attention", attention_launches(shape, dtype, gpu)),
        ("reduction", reduction_launches(shape, dtype, gpu) if shape.sr_ratio > 1 else []),
    ):
        for launch in launches:
            kernel = launch.kernel.__name__.removesuffix("_kernel")
            named[f"{op}_fold" if kernel == "fold" else kernel] = launch
    return named


def attention_launches(shape: LayerShape, dtype: torch.dtype, gpu: Gpu) -> list[Launch]:
    """The forward, then the backward."""
    B, N, M, heads = shape.batch, shape.queries, shape.keys, shape.heads
    q = _empty(B, N, heads, shape.dim // heads, dtype=dtype)
    k, v = _empty(B, M, 2, heads, shape.dim // heads, dtype=dtype).unbind(2)
    lse = _empty(B, heads, N, dtype=torch.float32)
    forward, _ = attention.forward_launches(gpu, q, k, v, 1.0)
    backward, _ = attention.backward_launches(gpu, q, q, k, v, q, lse, k, v, 1.0)
    return forward + backward


def reduction_launches(shape: LayerShape, dtype: torch.dtype, gpu: Gpu) -> list[Launch]:
    """The forward, then the backward."""
    B, N, M, C, R = shape.batch, shape.queries, shape.keys, shape.dim, shape.sr_ratio
    size = shape.height, shape.width
    x, y, weight, vector = (
        _empty(*sizes, dtype=dtype) for sizes in ((B, N, C), (B, M, C), (C, C, R, R), (C,))
    )
    normalized, rstd = (_empty(*sizes, dtype=torch.float32) for sizes in ((B, M, C), (B, M)))
    forward, _ = spatial_reduction.forward_launches(
        gpu, x, *size, weight, vector, vector, vector, 1e-5
    )
    backward, _ = spatial_reduction.backward_launches(
        gpu, y, x, *size, weight, vector, normalized, rstd
    )
    return forward + backward


def fused_launches(shape: LayerShape, dtype: torch.dtype, gpu: Gpu) -> list[Launch]:
    """The fused forward in inference; nothing where the layer is not fused."""
    B, N, M, C = shape.batch, shape.queries, shape.keys, shape.dim
    tile = multi_head_attention.fused_tile(gpu, dtype, C, C // shape.heads, B, N)
    if tile is None:
        return []
    x, kv, weight, bias = (
        _empty(*sizes, dtype=dtype) for sizes in ((B, N, C), (B, M, 2 * C), (C, C), (C,))
    )
    layers = (weight, bias, weight, bias)
    return [multi_head_attention.fused_launch(tile, x, kv, *layers, shape.heads, 1.0, False)[0]]


def linear_launches(shape: LayerShape, dtype: torch.dtype, gpu: Gpu) -> list[Launch]:
    """The weights' gradients of the narrow layers; nothing where PyTorch's products do."""
    rows, C = shape.batch * shape.queries, shape.dim
    if not linear_gradients.pays(gpu, dtype, C, rows):
        return []
    tokens = _empty(rows, C, dtype=dtype)
    return linear_gradients.linear_gradients_launches(gpu, [(tokens, tokens)] * 2)[0]


def feed_forward_launches(shape: LayerShape, dtype: torch.dtype, gpu: Gpu) -> list[Launch]:
    """Of a slab within the map, in every variant: the forwards, then the backwards."""
    hidden, device = MLP_RATIO * shape.dim, None

    def slab(buffers: int) -> slabs.Slab:
        sizes = (L2_BYTES, gpu.multiprocessors, hidden, dtype.itemsize, buffers)
        tokens = slabs.fitting_tokens(*sizes)
        made = list(slabs.divided(shape.batch, shape.height, shape.width, tokens))
        return made[len(made) // 2]

    forwards, backwards = [], []
    for activation, relu_before_conv in product(("gelu", "relu"), (False, True)):
        options = (activation, relu_before_conv)
        form = feed_forward.Form(gpu, device, dtype, hidden, True, True, *options)
        forwards.append(feed_forward.forward_of(form, slab(2).window(0, 1))[0])
        part = slab(3)
        (first, end), (begin, stop) = part.range(0), part.range(1)
        halo = (first - begin, stop - end)
        backwards.append(feed_forward.dc_of(form, part.window(1, 1), *halo)[0])
        backwards.append(feed_forward.dh_of(form, part.window(0, 1))[0])
    for activation in ("gelu", "relu"):
        form = feed_forward.Form(gpu, device, dtype, hidden, False, False, activation, False)
        backwards.append(feed_forward.dc_of(form, slab(2).window(0, 0), 0, 0)[0])
    return forwards + backwards


def _empty(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")
