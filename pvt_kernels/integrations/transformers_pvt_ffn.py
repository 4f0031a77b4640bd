"""transformers' PVT feed-forward network, a slice of the tokens at a time.

Its hidden tensor has up to eight times the tokens' channels: once the attention needs little
memory, this is a model's peak. Every token is computed by itself, so without autograd the slices
can follow one another, and what lies between the two linear layers stays in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pvt_kernels.integrations.adapter import Adapter
from pvt_kernels.parts import LINEAR_TYPES, are_plain, is_listened_to, is_plain

# where the activation is, if each value is computed by itself
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
# of the hidden tensor; about what the caches of a few cores hold
SLICE_BYTES = 2**22


def _forward(module: Any, original: Callable, hidden_states: Tensor) -> Tensor:
    sliced = not (torch.is_grad_enabled() or module.training or torch.compiler.is_compiling())
    if not sliced or not _takes_tokens_one_by_one(module):
        return original(hidden_states)
    hidden_bytes = (
        hidden_states.shape[0] * module.dense1.out_features * hidden_states.element_size()
    )
    slices = hidden_states.split(max(1, SLICE_BYTES // hidden_bytes), dim=1)
    return torch.cat([original(part) for part in slices], dim=1)


def _takes_tokens_one_by_one(module: Any) -> bool:
    """Whether every part does: a quantised layer may scale by the largest value of all tokens."""
    linears = (module.dense1, module.dense2)
    others = (module.dropout, module.intermediate_act_fn)
    return (
        all(is_plain(part, LINEAR_TYPES) for part in linears)
        and are_plain([tensor for part in linears for tensor in part._parameters.values()])
        and type(module.dropout) in (torch.nn.Dropout, torch.nn.Identity)
        and type(module.intermediate_act_fn).__module__ in ACTIVATIONS
        and not any(is_listened_to(part) for part in others)
    )


def _in_two_slices(module: Any, original: Callable, hidden_states: Tensor) -> Tensor:
    return torch.cat([original(part) for part in hidden_states.split(3, dim=1)], dim=1)


def _example(module: Any) -> tuple[Tensor]:
    return (torch.randn(2, 5, module.dense1.in_features, dtype=torch.float64),)


ADAPTER = Adapter(
    family="transformers PVT feed-forward",
    children=("dense1", "dense2", "dropout", "intermediate_act_fn"),
    signatures=(("hidden_states",),),
    optional=(),
    parts=None,
    forward=_forward,
    example=_example,
    trial=_in_two_slices,
    reasons=lambda module: [
        f"it has a part that is not known: {name}"
        for name, _ in module.named_children()
        if name not in ADAPTER.children
    ],
)
