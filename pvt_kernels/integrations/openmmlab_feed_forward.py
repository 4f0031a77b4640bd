"""mmdet's and mmseg's MixFFN.

A Sequential of convolutions on the map, of which the outer ones are of 1 x 1. It adds the residual,
`identity`, itself: forward(x, (H, W), identity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pvt_kernels.feed_forward_parts import FeedForwardParts, forward
from pvt_kernels.integrations.adapter import Adapter
from pvt_kernels.integrations.feed_forward import reasons_against
from pvt_kernels.parts import drops_nothing

_CALLS_ITS_MEMBERS = nn.Sequential.forward


def _parts(module: Any) -> FeedForwardParts:
    layers = module.layers
    if type(layers).forward is not _CALLS_ITS_MEMBERS or len(layers) not in (5, 6):
        raise AttributeError("a Sequential of 5 or 6 layers")
    fc1, *conv, activation, dropout, fc2, last_dropout = layers
    return FeedForwardParts(
        fc1=fc1,
        fc2=fc2,
        activation=activation,
        dropout=dropout,
        conv=conv[0] if conv else None,
        bypassed=(layers,),
        beside=(last_dropout, module.dropout_layer),
        pointwise=True,
    )


def _forward(
    module: Any,
    original: Callable,
    x: Tensor,
    hw_shape: tuple[int, int],
    identity: Tensor | None = None,
) -> Tensor:
    try:
        parts = _parts(module)
    except AttributeError:
        return original(x, hw_shape, identity)
    # the last one is called on a map
    dropouts = (parts.dropout, parts.beside[0])
    served = all(d is not None and drops_nothing(d) for d in dropouts)
    result = forward(parts, x, *hw_shape) if served else None
    if result is None:
        return original(x, hw_shape, identity)
    out = module.dropout_layer(result)
    return (x if identity is None else identity) + out


def _example(module: Any) -> tuple:
    height, width = 5, 4
    channels = _parts(module).fc1.in_channels
    x, identity = torch.randn(2, 2, height * width, channels, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    return x, (height, width), identity


ADAPTER = Adapter(
    family="mmdet PVT, mmseg SegFormer feed-forward",
    children=("layers", "dropout_layer"),
    signatures=(("x", "hw_shape"),),
    optional=("identity",),
    parts=None,
    forward=_forward,
    example=_example,
    reasons=lambda module: reasons_against(module, _parts(module)),
    feed_forward=_parts,
)
