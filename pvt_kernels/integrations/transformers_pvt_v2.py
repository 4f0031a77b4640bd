"""transformers' PVTv2: query, key and value apart, the output projection beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pvt_kernels.integrations.adapter import Adapter, find
from pvt_kernels.integrations.structure import dropout_rate, parts_at_call
from pvt_kernels.parts import Parts, forward


def _parts(module: Any) -> Parts:
    return Parts(
        query=module.query,
        keys_values=(module.key, module.value),
        out=module.proj,
        heads=module.num_attention_heads,
        scale=module.attention_head_size**-0.5,
        dropout_p=dropout_rate(module.attn_drop),
        conv=find(module, "spatial_reduction"),
        norm=find(module, "layer_norm"),
        pool=find(module, "pool"),
        activation=find(module, "act"),
        bypassed=(module.attn_drop,),
        beside=(module.proj_drop,),
    )


def _forward(
    module: Any,
    original: Callable,
    hidden_states: Tensor,
    height: int,
    width: int,
    output_attentions: bool = False,
) -> tuple[Tensor, ...]:
    own = None if output_attentions else parts_at_call(module, _parts)
    if own is None:
        return original(hidden_states, height, width, output_attentions)
    return (module.proj_drop(forward(own, hidden_states, height, width)),)


ADAPTER = Adapter(
    family="transformers PVTv2",
    children=("query", "key", "value", "proj", "attn_drop", "proj_drop"),
    signatures=(("hidden_states", "height", "width"),),
    optional=("output_attentions",),
    parts=_parts,
    forward=_forward,
    example=lambda module, tokens, H, W: (tokens, H, W),
)
