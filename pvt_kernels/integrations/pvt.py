"""The Attention of the original PVT, PVTv2 and SegFormer code: forward(x, H, W)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pvt_kernels.integrations.adapter import Adapter, find
from pvt_kernels.integrations.structure import dropout_rate, parts_at_call
from pvt_kernels.parts import Parts, forward


def attention_parts(module: Any) -> Parts:
    """Of the names that timm took over."""
    return Parts(
        query=module.q,
        keys_values=(module.kv,),
        out=module.proj,
        heads=module.num_heads,
        scale=module.scale,
        dropout_p=dropout_rate(module.attn_drop),
        conv=find(module, "sr"),
        norm=find(module, "norm"),
        pool=find(module, "pool"),
        activation=find(module, "act"),
        bypassed=(module.attn_drop,),
        beside=(module.proj_drop,),
    )


def _forward(
    module: Any, original: Callable, x: Tensor, H: int | None = None, W: int | None = None
) -> Tensor:
    # a fork may know what a call without them means
    if H is None or W is None:
        return original(x, *(size for size in (H, W) if size is not None))
    own = parts_at_call(module, attention_parts)
    if own is None:
        return original(x, H, W)
    return module.proj_drop(forward(own, x, H, W))


ADAPTER = Adapter(
    family="PVT, PVTv2",
    children=("q", "kv", "proj", "attn_drop", "proj_drop"),
    signatures=(("x", "H", "W"),),
    optional=(),
    parts=attention_parts,
    forward=_forward,
    example=lambda module, tokens, H, W: (tokens, H, W),
)
