"""transformers' SegFormer since the renaming: q_proj to o_proj, and a module that reduces.

Its core is chosen by the configuration, SDPA by default; the module returns the attention weights
too, which only the eager core has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pvt_kernels.integrations.adapter import Adapter, find
from pvt_kernels.integrations.structure import parts_at_call
from pvt_kernels.parts import Parts, forward

# what computes the same; None is the choice of a model that was never loaded
KNOWN_CORES = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", None)


def _parts(module: Any) -> Parts:
    reduction: Any = find(module, "sequence_reduction")
    return Parts(
        query=module.q_proj,
        keys_values=(module.k_proj, module.v_proj),
        out=module.o_proj,
        heads=module.num_attention_heads,
        scale=module.scaling,
        dropout_p=module.attention_dropout,
        conv=None if reduction is None else reduction.sequence_reduction,
        norm=None if reduction is None else reduction.layer_norm,
        bypassed=() if reduction is None else (reduction,),
    )


def _forward(
    module: Any,
    original: Callable,
    hidden_states: Tensor,
    height: int,
    width: int,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    weights_wanted = kwargs.get("output_attentions", module.config.output_attentions)
    # as it stands now: the model may have been given another core
    own_alone = attention_mask is not None or weights_wanted or _reasons(module)
    own = None if own_alone else parts_at_call(module, _parts)
    if own is None:
        return original(hidden_states, height, width, attention_mask, **kwargs)
    return forward(own, hidden_states, height, width), None


def _reasons(module: Any) -> list[str]:
    core = module.config._attn_implementation
    if core in KNOWN_CORES:
        return []
    return [f"its attn_implementation is {core!r}, not one of {', '.join(map(repr, KNOWN_CORES))}"]


ADAPTER = Adapter(
    family="transformers SegFormer",
    children=("q_proj", "k_proj", "v_proj", "o_proj"),
    signatures=(("hidden_states", "height", "width"),),
    optional=("attention_mask", "kwargs"),
    parts=_parts,
    forward=_forward,
    example=lambda module, tokens, H, W: (tokens, H, W),
    reasons=_reasons,
)
