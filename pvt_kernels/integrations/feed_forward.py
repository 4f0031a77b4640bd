"""The feed-forward networks beside these attentions, which differ by their parts' names.

The original code's, timm's and SegFormer's have fc1 and fc2, transformers' others dense1 and
dense2. With a depthwise convolution between them the map's size comes along with the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pvt_kernels.feed_forward_parts import FeedForwardParts, forward, known_reasons
from pvt_kernels.integrations.adapter import Adapter, find, forward_parameters
from pvt_kernels.integrations.structure import is_of_the_same_source
from pvt_kernels.parts import drops_nothing

SIGNATURES = (
    ("x", "H", "W"),
    ("x", "feat_size"),
    ("x",),
    ("hidden_states", "height", "width"),
    ("hidden_states",),
)


def _parts(module: Any) -> FeedForwardParts:
    wrapper, inner, norm = (find(module, name) for name in ("dwconv", "dwconv.dwconv", "norm"))
    owners = (None if inner is None else wrapper, norm)
    return FeedForwardParts(
        fc1=_required(module, "fc1", "dense1"),
        fc2=_required(module, "fc2", "dense2"),
        activation=_required(module, "act", "activation_fn", "intermediate_act_fn"),
        dropout=find(module, "drop1", "drop", "dropout"),
        conv=wrapper if inner is None else inner,
        before_conv=find(module, "relu"),
        bypassed=tuple(part for part in owners if part is not None),
        beside=(_required(module, "drop2", "drop", "dropout"),),
    )


def _required(module: nn.Module, *names: str) -> nn.Module:
    part = find(module, *names)
    if part is None:
        raise AttributeError(f"none of {', '.join(names)}")
    return part


def _forward(module: Any, original: Callable, *given: Any, **named: Any) -> Tensor:
    if named:
        missing = forward_parameters(module)[len(given) :]
        if set(named) != set(missing):
            return original(*given, **named)
        given = (*given, *(named[name] for name in missing))
    parts = _parts_at_call(module)
    if not given or parts is None:
        return original(*given)
    x, *sizes = given
    if len(sizes) == 1 and sizes[0] is not None:
        sizes = tuple(sizes[0])
    if parts.conv is None:
        # there is no map
        sizes = (1, 1)
    elif len(sizes) != 2 or any(size is None for size in sizes):
        # a fork may know what a call without the map's size means
        return original(*given)
    result = forward(parts, x, *sizes)
    if result is None:
        return original(*given)
    (dropout,) = parts.beside
    return result if drops_nothing(dropout) else dropout(result)


def _parts_at_call(module: Any) -> FeedForwardParts | None:
    """The parts as they stand, or None if another has taken the place of one that is left out."""
    try:
        parts = _parts(module)
    except AttributeError:
        return None
    norm, wrapper = find(module, "norm"), find(module, "dwconv")
    if norm is not None and type(norm) is not nn.Identity:
        return None
    if wrapper not in (None, parts.conv) and not is_of_the_same_source(wrapper, module):
        return None
    return parts if parts.dropout is None or drops_nothing(parts.dropout) else None


def _example(module: Any) -> tuple:
    height, width = 5, 4
    channels = _parts(module).fc1.in_features
    tokens = torch.randn(2, height * width, channels, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    names = forward_parameters(module)[1:]
    if not names:
        return (tokens,)
    return (tokens, (height, width)) if len(names) == 1 else (tokens, height, width)


def _reasons(module: nn.Module) -> list[str]:
    if type(module).__module__.startswith("pvt_kernels."):
        return ["it is this package's own"]
    norm = find(module, "norm")
    return [
        *reasons_against(module, _parts(module)),
        *([] if norm is None or type(norm) is nn.Identity else ["it has a norm"]),
    ]


def reasons_against(module: nn.Module, parts: FeedForwardParts) -> list[str]:
    """What of a module's parts is not known."""
    known = {id(part) for part in (*parts, *parts.bypassed, *parts.beside)}
    unknown = [name for name, child in module.named_children() if id(child) not in known]
    tensors = [n for n, t in (module._parameters | module._buffers).items() if t is not None]
    return [
        *known_reasons(parts),
        *(f"it has a part that is not known: {name}" for name in unknown),
        *(f"it has a tensor that is not known: {name}" for name in tensors),
    ]


def _adapter(family: str, *children: str) -> Adapter:
    return Adapter(
        family=family,
        children=children,
        signatures=SIGNATURES,
        optional=(),
        parts=None,
        forward=_forward,
        example=_example,
        reasons=_reasons,
        feed_forward=_parts,
    )


ADAPTERS = (
    _adapter("feed-forward", "fc1", "fc2"),
    _adapter("transformers feed-forward", "dense1", "dense2", "dropout"),
)
