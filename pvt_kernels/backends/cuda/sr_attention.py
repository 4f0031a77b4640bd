"""The whole layer on NVIDIA GPUs: its reduction, then its attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pvt_kernels.backends.composed_layer import ComposedLayer
from pvt_kernels.backends.cuda import multi_head_attention, spatial_reduction


def make(
    x: Tensor,
    H: int,
    W: int,
    parameters: Sequence[Tensor | None],
    heads: int,
    scale: float,
    eps: float,
) -> ComposedLayer:
    """The layer for such tensors."""
    return ComposedLayer(spatial_reduction, multi_head_attention, H, W, heads, scale, eps)
