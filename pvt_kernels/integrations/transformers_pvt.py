"""transformers' PVT and GLPN, and its SegFormer before the renaming.

The attention module has two children: `self` with the projections and the reduction, and `output`
with the output projection and its dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pvt_kernels.integrations.adapter import Adapter, find
from pvt_kernels.integrations.structure import dropout_rate, parts_at_call
from pvt_kernels.parts import Parts, forward


def _parts(module: Any) -> Parts:
    own = module.self
    return Parts(
        query=own.query,
        keys_values=(own.key, own.value),
        out=module.output.dense,
        heads=own.num_attention_heads,
        scale=own.attention_head_size**-0.5,
        dropout_p=dropout_rate(own.dropout),
        conv=find(own, "sr", "sequence_reduction"),
        norm=find(own, "layer_norm"),
        bypassed=(own, own.dropout, module.output),
        beside=(module.output.dropout,),
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
    return (module.output.dropout(forward(own, hidden_states, height, width)),)


ADAPTER = Adapter(
    family="transformers PVT, GLPN, SegFormer",
    children=("self.query", "self.key", "self.value", "output.dense"),
    signatures=(("hidden_states", "height", "width"),),
    optional=("output_attentions",),
    parts=_parts,
    forward=_forward,
    example=lambda module, tokens, H, W: (tokens, H, W),
)
