"""timm's pvt_v2.Attention and twins.GlobalSubSampleAttn: forward(x, (H, W))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pvt_kernels.integrations import pvt
from pvt_kernels.integrations.adapter import Adapter
from pvt_kernels.integrations.structure import parts_at_call
from pvt_kernels.parts import forward


def _forward(
    module: Any, original: Callable, x: Tensor, *given: tuple[int, int], **named: tuple[int, int]
) -> Tensor:
    # the size is called feat_size in pvt_v2 and size in twins
    size = next(iter((*given, *named.values())), None)
    own = parts_at_call(module, pvt.attention_parts)
    # a fork may know what a call without it means
    if own is None or size is None:
        return original(x, *given, **named)
    return module.proj_drop(forward(own, x, *size))


ADAPTER = Adapter(
    family="timm PVTv2, Twins",
    children=pvt.ADAPTER.children,
    signatures=(("x", "feat_size"), ("x", "size")),
    optional=(),
    parts=pvt.attention_parts,
    forward=_forward,
    example=lambda module, tokens, H, W: (tokens, (H, W)),
)
