"""Whether a live module is what an adapter takes it for, and what it asks of a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from pvt_kernels.backends import (
    FeedForwardInputs,
    Inputs,
    MultiHeadAttentionInputs,
    SpatialReductionInputs,
)
from pvt_kernels.feed_forward_parts import FeedForwardParts
from pvt_kernels.parts import Parts, Projection, is_listened_to, is_plain

# of torch.nn.MultiheadAttention, where OpenMMLab's layers keep three projections
PARAMETERS = ("in_proj_weight", "in_proj_bias")


def parts_at_call(module: Any, parts_of: Callable[[Any], Parts]) -> Parts | None:
    """The parts as they stand at a call, or None where the module's own forward is to run.

    That is where a part of another kind has taken the place of one, attention weights are dropped,
    or a call that would be left out would be noticed.
    """
    try:
        own = parts_of(module)
    except AttributeError:
        return None
    if module.training and own.dropout_p > 0:
        return None
    if not isinstance(own.scale, float) or (own.pool is None) != (own.activation is None):
        return None
    if (own.conv is None) != (own.norm is None) or (own.pool is not None and own.conv is None):
        return None
    return own if all(_can_be_left_out(part, module) for part in own.bypassed) else None


def dropout_rate(dropout: Any) -> float:
    """Of a dropout, or of an Identity that somebody has put in its place."""
    return getattr(dropout, "p", 0.0)


def is_of_the_same_source(part: nn.Module, module: nn.Module) -> bool:
    """Whether the part's class is defined in one file with the module's, or with one that this is
    derived from, as those are that a library wrote together."""
    source = type(part).__module__
    return source == type(module).__module__ or any(
        source == kind.__module__ for kind in type(module).__mro__
    )


def _can_be_left_out(part: Any, module: nn.Module) -> bool:
    if is_plain(part, (nn.Dropout,)):
        # Monte Carlo dropout trains this one alone
        return not part.training or part.p == 0
    if is_plain(part, (nn.MultiheadAttention,)):
        return not part.training or part.dropout == 0
    if isinstance(part, nn.Linear):
        # one whose weights its owner reads, in the place of calling it
        return True
    known = type(part) is nn.Identity or is_of_the_same_source(part, module)
    return known and not is_listened_to(part)


def calls(parts: Parts, like: Tensor) -> list[Inputs]:
    """What the attention asks of a backend, on the device and in the dtype of a parameter."""
    channels = sizes(parts.out)[0]
    found: list[Inputs] = [
        MultiHeadAttentionInputs(like.device, like.dtype, channels // parts.heads, dropout=False)
    ]
    if isinstance(parts.conv, nn.Conv2d):
        sr_ratio = parts.conv.kernel_size[0]
        found.append(SpatialReductionInputs(like.device, like.dtype, channels, sr_ratio))
    return found


def network_calls(network: FeedForwardParts, like: Tensor) -> list[Inputs]:
    """The same of a feed-forward network, in inference and in training."""
    hidden, channels = network.sizes
    facts = (like.device, like.dtype, channels, hidden, network.conv is not None, False)
    return [FeedForwardInputs(*facts, gradients) for gradients in (False, True)]


def not_served_reasons(module: nn.Module, parts: Parts) -> list[str]:
    """Everything about a module that `parts.forward` doesn't know; empty if it can replace it."""
    return [*_size_reasons(parts), *_kind_reasons(parts), *_unknown_parts(module, parts)]


def _size_reasons(parts: Parts) -> Iterator[str]:
    C = sizes(parts.out)[0]
    rows = (2 * C,) if len(parts.keys_values) == 1 else (C, C)
    wanted = [("query", parts.query, C), ("output", parts.out, C)]
    wanted += [("key and value", *p) for p in zip(parts.keys_values, rows, strict=True)]
    for name, layer, row in wanted:
        if sizes(layer) != (row, C):
            given = "x".join(map(str, sizes(layer)))
            yield f"its {name} projection is {given}, not {row}x{C}"
    if parts.heads < 1 or C % parts.heads != 0:
        yield f"it has {parts.heads} heads for {C} channels"


def _kind_reasons(parts: Parts) -> Iterator[str]:
    for name, part, kind in (
        ("reduction", parts.conv, nn.Conv2d),
        ("pool", parts.pool, nn.AdaptiveAvgPool2d),
        ("activation", parts.activation, nn.GELU),
    ):
        if part is not None and not isinstance(part, kind):
            yield f"its {name} is a {type(part).__name__}, not a {kind.__name__}"
    if (parts.pool is None) != (parts.activation is None):
        yield "it has a pool or an activation alone"
    if (parts.conv is None) != (parts.norm is None) or (parts.pool and parts.conv is None):
        yield "it has a part of the reduction alone"


def _unknown_parts(module: nn.Module, parts: Parts) -> Iterator[str]:
    """What a variant of the attention has on top: relative positions, another branch."""
    known = {id(part) for part in (*parts, *parts.keys_values, *parts.bypassed, *parts.beside)}
    owners = (part for part in parts.bypassed if not isinstance(part, nn.Linear))
    for owner in (module, *owners):
        for name, child in owner.named_children():
            if id(child) not in known:
                yield f"it has a part that is not known: {name}"
        tensors = owner._parameters | owner._buffers
        for name, tensor in tensors.items():
            if tensor is not None and name not in PARAMETERS:
                yield f"it has a tensor that is not known: {name}"


def sizes(layer: Projection) -> tuple[int, ...]:
    """Rows and columns of a projection's weight."""
    if isinstance(layer, tuple):
        return tuple(layer[0].shape)
    return tuple(getattr(layer, name) for name in ("out_features", "in_features"))
