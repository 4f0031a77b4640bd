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
from pvt_kernels.parts import is_listened_to

# of the hidden tensor; about what the caches of a few cores hold
SLICE_BYTES = 2**22


def _forward(module: Any, original: Callable, hidden_states: Tensor) -> Tensor:
    sliced = not (torch.is_grad_enabled() or module.training or torch.compiler.is_compiling())
    if not sliced or any(is_listened_to(part) for part in module.children()):
        return original(hidden_states)
    hidden_bytes = (
        hidden_states.shape[0] * module.dense1.out_features * hidden_states.element_size()
    )
    slices = hidden_states.split(max(1, SLICE_BYTES // hidden_bytes), dim=1)
    return torch.cat([original(part) for part in slices], dim=1)


ADAPTER = Adapter(
    family="transformers PVT feed-forward",
    children=("dense1", "dense2", "dropout", "intermediate_act_fn"),
    signatures=(("hidden_states",),),
    optional=(),
    parts=None,
    forward=_forward,
    reasons=lambda module: [
        f"it has a part that is not known: {name}"
        for name, _ in module.named_children()
        if name not in ADAPTER.children
    ],
)
