"""Whether a live module is what an adapter takes it for, and what it asks of a backend."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from pvt_kernels.backends import Inputs, MultiHeadAttentionInputs, SpatialReductionInputs
from pvt_kernels.parts import Parts, Projection, is_listened_to

# of torch.nn.MultiheadAttention, where OpenMMLab's layers keep three projections
PARAMETERS = ("in_proj_weight", "in_proj_bias")


def serves(parts: Parts, training: bool) -> bool:
    """Whether `parts.forward` does all that the module's own does: no dropout, nobody left out."""
    if training and parts.dropout_p > 0:
        return False
    return not any(is_listened_to(module) for module in parts.bypassed)


def calls(parts: Parts, like: Tensor) -> list[Inputs]:
    """What the attention asks of a backend, on the device and in the dtype of a parameter."""
    channels = _sizes(parts.out)[0]
    found: list[Inputs] = [
        MultiHeadAttentionInputs(like.device, like.dtype, channels // parts.heads, dropout=False)
    ]
    if isinstance(parts.conv, nn.Conv2d):
        sr_ratio = parts.conv.kernel_size[0]
        found.append(SpatialReductionInputs(like.device, like.dtype, channels, sr_ratio))
    return found


def not_served_reasons(module: nn.Module, parts: Parts) -> list[str]:
    """Everything about a module that `parts.forward` doesn't know; empty if it can replace it."""
    return [*_size_reasons(parts), *_kind_reasons(parts), *_unknown_parts(module, parts)]


def _size_reasons(parts: Parts) -> Iterator[str]:
    C = _sizes(parts.out)[0]
    rows = (2 * C,) if len(parts.keys_values) == 1 else (C, C)
    wanted = [("query", parts.query, C), ("output", parts.out, C)]
    wanted += [("key and value", *p) for p in zip(parts.keys_values, rows, strict=True)]
    for name, layer, row in wanted:
        if _sizes(layer) != (row, C):
            given = "x".join(map(str, _sizes(layer)))
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
    for owner in (module, *parts.bypassed):
        for name, child in owner.named_children():
            if id(child) not in known:
                yield f"it has a part that is not known: {name}"
        tensors = owner._parameters | owner._buffers
        for name, tensor in tensors.items():
            if tensor is not None and name not in PARAMETERS:
                yield f"it has a tensor that is not known: {name}"


def _sizes(layer: Projection) -> tuple[int, ...]:
    """Rows and columns of a projection's weight."""
    if isinstance(layer, tuple):
        return tuple(layer[0].shape)
    return tuple(getattr(layer, name) for name in ("out_features", "in_features"))
