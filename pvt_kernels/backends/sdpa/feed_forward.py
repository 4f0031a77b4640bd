"""The feed-forward network through PyTorch's own functions, which its definition is.

On CPUs a slab of tokens at a time where nothing is differentiated: else the hidden layer would be a
model's peak of memory. Rows of neighbours go along with a slab and are left away of its result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels.backends import transforms
from pvt_kernels.backends.reference.feed_forward import feed_forward as whole
from pvt_kernels.backends.tensors import records_gradients

# of the hidden layer
SLAB_BYTES = 2**24


def feed_forward(
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    relu_before_conv: bool,
    dropout_p: float,
) -> Tensor:
    """Shapes as the op has them; differentiable."""
    layers = (fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)
    options = (activation, relu_before_conv, dropout_p)
    differentiated = records_gradients(x, *layers)
    observed = torch.compiler.is_compiling() or transforms.active()
    # a slab's dropout would draw other numbers than the whole's, which checkpointing runs later
    if differentiated or observed or x.device.type != "cpu" or dropout_p > 0:
        return whole(x, H, W, *layers, *options)
    halo = int(dw_weight is not None)
    if not halo:
        H, W = x.shape[1], 1
    row_bytes = max(W * len(fc1_weight) * x.element_size(), 1)
    images = max(1, SLAB_BYTES // (row_bytes * max(H, 1)))
    rows = max(1, SLAB_BYTES // row_bytes - 2 * halo)
    if images >= len(x) and rows >= H:
        return whole(x, H, W, *layers, *options)
    result = x.new_empty(x.shape)
    for some, into in zip(x.split(images), result.split(images), strict=True):
        for first in range(0, H, rows):
            end = min(first + rows, H)
            begin, stop = max(first - halo, 0), min(end + halo, H)
            slab = whole(some[:, begin * W : stop * W], stop - begin, W, *layers, *options)
            into[:, first * W : end * W] = slab[:, (first - begin) * W : (end - begin) * W]
    return result
