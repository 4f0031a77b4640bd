"""Spatial-reduction attention from the parts of a live module, whatever they are called.

SRAttention and the adapters for other libraries' modules are built on it. It runs the ops on the
parts' parameters, and honours whatever was put in the parts' place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_kernels.ops.attention import attention
from pvt_kernels.ops.multi_head_attention import multi_head_attention
from pvt_kernels.ops.spatial_reduction import spatial_reduction
from pvt_kernels.ops.sr_attention import sr_attention

# of a linear layer: weight and bias
Weights = tuple[Tensor, Tensor | None]
# a linear layer as a module, or as its weight and bias
Projection = nn.Module | Weights

# out_proj of torch.nn.MultiheadAttention is a Linear under a name of its own
LINEAR_TYPES = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)

ModuleType = TypeVar("ModuleType", bound=nn.Module)


class Parts(NamedTuple):
    """Where the parts of an attention are.

    Attributes:
        query, keys_values, out, heads, scale: as `attend` takes them.
        dropout_p: of the attention weights, in training.
        conv, norm: of the spatial reduction; None where nothing is reduced.
        pool, activation: around them, in linear SRA.
        bypassed: modules whose own calls are left out: dropout of the attention weights, and what
            other parts lie in.
        beside: modules that are called after the attention by whoever made this.
    """

    query: Projection
    keys_values: tuple[Projection, ...]
    out: Projection
    heads: int
    scale: float
    dropout_p: float = 0.0
    conv: nn.Module | None = None
    norm: nn.Module | None = None
    pool: nn.Module | None = None
    activation: nn.Module | None = None
    bypassed: tuple[nn.Module, ...] = ()
    beside: tuple[nn.Module, ...] = ()


def forward(parts: Parts, x: Tensor, H: int, W: int, training: bool = False) -> Tensor:
    """The attention of tokens (B, N, C) on a map of H x W, before any dropout of its output.

    In `training` the attention weights are dropped with the probability parts.dropout_p.
    """
    dropout_p = parts.dropout_p if training else 0.0
    if parts.pool is None and dropout_p == 0:
        parameters = _parameters(parts)
        if parameters is not None:
            eps = 1e-5 if parts.norm is None else parts.norm.eps
            return sr_attention(x, H, W, *parameters, parts.heads, parts.scale, eps)
    y = x
    if parts.pool is not None:
        assert parts.activation is not None and parts.conv is not None and parts.norm is not None
        pooled = parts.pool(image(x, H, W))
        height, width = pooled.shape[2:]
        y = parts.activation(reduce(tokens(pooled), height, width, parts.conv, parts.norm))
    elif parts.conv is not None:
        assert parts.norm is not None
        y = reduce(x, H, W, parts.conv, parts.norm)
    layers = (parts.query, parts.keys_values, parts.out)
    return attend(x, y, *layers, parts.heads, parts.scale, dropout_p)


def _parameters(parts: Parts) -> tuple[Tensor | None, ...] | None:
    """As `sr_attention` takes them, if every part is plain: is_plain() and all that it stands for.

    Asked in every call of every layer, it calls next to nothing.
    """
    conv, norm = parts.conv, parts.norm
    modules = [
        part for part in (parts.query, *parts.keys_values, parts.out) if type(part) is not tuple
    ]
    for module in modules:
        if type(module) not in LINEAR_TYPES:
            return None
    if conv is not None:
        if type(norm) is not nn.LayerNorm or not is_conv(conv) or not _has_patches(conv):
            return None
        modules += conv, norm
    for module in modules:
        if (
            module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
            or "forward" in module.__dict__
        ):
            return None
    if conv is None:
        reduction = (None, None, None, None)
    else:
        reduction = (*_weights(conv), *_weights(norm))
        if reduction[1] is None or reduction[3] is None:
            return None
    keys_values = parts.keys_values
    kv = (
        _weights(keys_values[0]) if len(keys_values) == 1 else _stacked(*map(_weights, keys_values))
    )
    return (*reduction, *_weights(parts.query), *kv, *_weights(parts.out))


def attend(
    x: Tensor,
    y: Tensor,
    query: Projection,
    keys_values: Sequence[Projection],
    out: Projection,
    heads: int,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of the tokens x to the tokens y: the op `multi_head_attention` on modules.

    A projection that is no plain Linear (LoRA, quantised layers), or that somebody listens to by
    a hook, is called as it is, and the op `attention` computes what is between.

    Args:
        x: (B, N, C).
        y: (B, M, C).
        query, out: projections C -> C.
        keys_values: one projection C -> 2C, keys first, or two C -> C, for keys and for values.
        heads, scale, dropout_p: as in `multi_head_attention`.

    Returns:
        (B, N, C).
    """
    layers = (query, *keys_values, out)
    if _are_linear(layers):
        (q_weight, q_bias), *kv, (out_weight, out_bias) = map(_weights, layers)
        kv_weight, kv_bias = kv[0] if len(kv) == 1 else _stacked(*kv)
        tensors = (q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias)
        return multi_head_attention(x, y, *tensors, heads, scale, dropout_p)
    B, N, C = x.shape
    q = _project(x, query).reshape(B, N, heads, C // heads)
    kv = [_project(y, layer).reshape(B, y.shape[1], -1, heads, C // heads) for layer in keys_values]
    k, v = kv[0].unbind(2) if len(kv) == 1 else (t.squeeze(2) for t in kv)
    o = attention(q, k, v, scale, dropout_p)
    return _project(o.reshape(B, N, C), out)


def reduce(x: Tensor, H: int, W: int, conv: nn.Module, norm: nn.Module) -> Tensor:
    """norm(conv(x)) on tokens (B, H*W, C): the op `spatial_reduction` on modules.

    Modules of other kinds, or that somebody listens to by a hook, are called as they are.
    """
    if _is_patch_conv(conv) and conv.bias is not None and _is_layer_norm(norm):
        parameters = (conv.weight, conv.bias, norm.weight, norm.bias)
        return spatial_reduction(x, H, W, *parameters, norm.eps)
    return norm(tokens(conv(image(x, H, W))))


def image(x: Tensor, H: int, W: int) -> Tensor:
    """Tokens (B, H*W, C) as a map (B, C, H, W)."""
    return x.transpose(1, 2).reshape(*x.shape[::2], H, W)


def tokens(image: Tensor) -> Tensor:
    """A map (B, C, H, W) as tokens (B, H*W, C)."""
    return image.flatten(2).transpose(1, 2)


def is_plain(module: nn.Module, types: Sequence[type[ModuleType]]) -> TypeGuard[ModuleType]:
    """Whether a module is exactly of one of the types, and nobody listens to it."""
    return type(module) in types and not is_listened_to(module)


def is_listened_to(module: nn.Module) -> bool:
    """Whether leaving out a call of the module would be noticed: hooks, or another forward."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__
    )


def drops_nothing(dropout: nn.Module) -> bool:
    """Whether leaving out the call of a dropout changes nothing."""
    if type(dropout) is not nn.Dropout or (dropout.training and dropout.p > 0):
        return False
    return not is_listened_to(dropout)


def is_conv(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether its forward is torch.nn.Conv2d's; mmcv's differs for empty tensors alone."""
    kind = type(module)
    return kind is nn.Conv2d or (
        isinstance(module, nn.Conv2d)
        and (kind.__module__, kind.__name__) == ("mmcv.cnn.bricks.wrappers", "Conv2d")
    )


def _are_linear(layers: Sequence[Projection]) -> TypeGuard[Sequence[nn.Linear | Weights]]:
    return all(isinstance(layer, tuple) or is_plain(layer, LINEAR_TYPES) for layer in layers)


def _is_patch_conv(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    return is_conv(conv) and not is_listened_to(conv) and _has_patches(conv)


def _has_patches(conv: nn.Conv2d) -> bool:
    """Whether each number of the image belongs to at most one of the kernel's places."""
    return (
        conv.kernel_size == conv.stride
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.padding in ("valid", (0, 0))
        and conv.dilation == (1, 1)
        and conv.groups == 1
    )


def _is_layer_norm(norm: nn.Module) -> TypeGuard[nn.LayerNorm]:
    return is_plain(norm, (nn.LayerNorm,)) and norm.bias is not None


def _weights(layer: nn.Module | Weights) -> Weights:
    """A module's weight and bias, or what stands for them."""
    if isinstance(layer, tuple):
        return layer
    own = layer._parameters
    if "weight" in own and "bias" in own:
        # where torch.nn.Module.__getattr__ looks in the end, ten times as fast
        return own["weight"], own["bias"]
    return layer.weight, layer.bias


def _project(x: Tensor, layer: Projection) -> Tensor:
    return F.linear(x, *layer) if isinstance(layer, tuple) else layer(x)


def _stacked(key: Weights, value: Weights) -> Weights:
    """One projection that does what the two do, keys first."""
    weight = torch.cat((key[0], value[0]))
    if key[1] is None and value[1] is None:
        return weight, None
    biases = (w.new_zeros(w.shape[0]) if bias is None else bias for w, bias in (key, value))
    return weight, torch.cat(tuple(biases))
