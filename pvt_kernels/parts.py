"""Spatial-reduction attention from the parts of a live module, whatever they are called.

SRAttention and the adapters for other libraries' modules are built on it. It runs the ops on the
parts' parameters, and honours whatever was put in the parts' place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from pvt_kernels._C.modules import tensors_of
from pvt_kernels.backends import surroundings, transforms
from pvt_kernels.ops import autocast, repeated
from pvt_kernels.ops.attention import attention
from pvt_kernels.ops.eager import is_eager
from pvt_kernels.ops.multi_head_attention import multi_head_attention
from pvt_kernels.ops.spatial_reduction import spatial_reduction
from pvt_kernels.ops.sr_attention import call_of, differentiable, inference, sr_attention

# of a linear layer: weight and bias
Weights = tuple[Tensor, Tensor | None]
# a linear layer as a module, or as its weight and bias
Projection = nn.Module | Weights

# out_proj of torch.nn.MultiheadAttention is a Linear under a name of its own
LINEAR_TYPES = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
# all others compute in their own way: quantised, distributed, symbolic; of the last two there is
# one for each of these, with its dtype and shape, while PyTorch traces
TENSOR_TYPES = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)
# what PyTorch's layers compute; somebody may have put another function in its place for all
FORWARDS: dict[type[nn.Module], Callable] = {
    kind: kind.forward
    for kind in (*LINEAR_TYPES, nn.Conv2d, nn.LayerNorm, nn.Dropout, nn.MultiheadAttention)
}

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
    # in eager mode first what was computed before, of parts that are what they were
    found = key = None
    if parts.pool is None and dropout_p == 0 and is_eager(x):
        found = _of_eager(parts, x)
    if found is not None:
        parameters, tensors, absent = found
        # of a part of another kind, which the checks below tell from a norm
        eps = 1e-5 if parts.norm is None else getattr(parts.norm, "eps", None)
        around = surroundings(x.device, x.dtype)
        numbers = (H, W, type(H), type(W), parts.heads, parts.scale, eps)
        key = (x.shape, *numbers, absent, torch.is_grad_enabled(), around)
        call = repeated.find(key, tensors)
        if call is not None:
            return call(x, parameters)
    # neither a symbol of torch.fx nor anything else that looks in
    seen = not isinstance(x, Tensor) or transforms.active()
    if parts.pool is None and dropout_p == 0 and not seen:
        parameters = _parameters(parts, x)
        if parameters is not None:
            eps = 1e-5 if parts.norm is None else parts.norm.eps
            numbers = (parts.heads, parts.scale, eps)
            result = sr_attention(x, H, W, *parameters, *numbers)  # pyright: ignore[reportCallIssue]
            if found is not None:
                call = call_of(x, H, W, found[0], *numbers)  # pyright: ignore[reportArgumentType]
                if call is not None and call.layer is not None:
                    runs = partial(inference, call), partial(differentiable, call)
                    repeated.remember(key, found[1], *runs)
            return result
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


def _of_eager(
    parts: Parts, x: Tensor
) -> tuple[tuple[Tensor | None, ...], list[Tensor], int] | None:
    """What `tensors_of` finds, in the order of `_parameters`, where no part does anything else."""
    conv, keys_values = parts.conv, parts.keys_values
    if len(keys_values) != 1:
        return None
    found = tensors_of(x, (conv, parts.norm, parts.query, keys_values[0], parts.out), FORWARDS)
    if found is None or not (conv is None or _moves_by_patches(conv)):
        return None
    return found


def _parameters(parts: Parts, x: Tensor) -> tuple[Tensor | None, ...] | None:
    """As `sr_attention` takes them, where no part does anything else."""
    conv, norm = parts.conv, parts.norm
    found = _linear_weights((parts.query, *parts.keys_values, parts.out), x)
    if found is None:
        return None
    reduction: tuple[Tensor | None, ...] = (None, None, None, None)
    if conv is not None:
        if not (_is_patch_conv(conv, x) and _is_layer_norm(norm, x)):  # pyright: ignore[reportArgumentType]
            return None
        reduction = (*_weights(conv), *_weights(norm))
    query, *keys_values, out = found
    kv = keys_values[0] if len(keys_values) == 1 else _stacked(*keys_values)
    return (*reduction, *query, *kv, *out)


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

    A projection that is no plain Linear (LoRA, quantised layers, weights of a tensor subclass), or
    that somebody listens to by a hook, is called as it is, and the op `attention` computes what is
    between; so it is for all of them under a transform or a tracer.

    Args:
        x: (B, N, C).
        y: (B, M, C).
        query, out: projections C -> C.
        keys_values: one projection C -> 2C, keys first, or two C -> C, for keys and for values.
        heads, scale, dropout_p: as in `multi_head_attention`.

    Returns:
        (B, N, C).
    """
    found = None if is_watched(x) else _linear_weights((query, *keys_values, out), x)
    if found is not None:
        (q_weight, q_bias), *kv, (out_weight, out_bias) = found
        kv_weight, kv_bias = kv[0] if len(kv) == 1 else _stacked(*kv)
        tensors = (q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias)
        return multi_head_attention(x, y, *tensors, heads, scale, dropout_p)
    q = _project(x, query).unflatten(-1, (heads, -1))
    if len(keys_values) == 1:
        k, v = _project(y, keys_values[0]).unflatten(-1, (2, heads, -1)).unbind(2)
    else:
        k, v = (_project(y, layer).unflatten(-1, (heads, -1)) for layer in keys_values)
    return _project(attention(q, k, v, scale, dropout_p).flatten(2), out)


def reduce(x: Tensor, H: int, W: int, conv: nn.Module, norm: nn.Module) -> Tensor:
    """norm(conv(x)) on tokens (B, H*W, C): the op `spatial_reduction` on modules.

    Modules of other kinds, or that somebody listens to by a hook, are called as they are, and all
    are under a transform or a tracer.
    """
    if not is_watched(x) and _is_patch_conv(conv, x) and _is_layer_norm(norm, x):
        parameters = (conv.weight, conv.bias, norm.weight, norm.bias)
        return spatial_reduction(x, H, W, *parameters, norm.eps)  # pyright: ignore[reportArgumentType]
    return norm(tokens(conv(image(x, H, W))))


def image(x: Tensor, H: int, W: int) -> Tensor:
    """Tokens (B, H*W, C) as a map (B, C, H, W)."""
    B, _, C = x.shape
    return x.transpose(1, 2).reshape(B, C, H, W)


def tokens(image: Tensor) -> Tensor:
    """A map (B, C, H, W) as tokens (B, H*W, C)."""
    return image.flatten(2).transpose(1, 2)


def is_plain(module: nn.Module, types: Sequence[type[ModuleType]]) -> TypeGuard[ModuleType]:
    """Whether a module is exactly of one of the types, computes it, and nobody listens to it."""
    kind = type(module)
    return (
        kind in types
        and (kind not in FORWARDS or kind.forward is FORWARDS[kind])
        and not is_listened_to(module)
    )


def are_plain(tensors: Sequence[object]) -> bool:
    """Whether none of these is a tensor subclass, such as a quantised or a distributed one.

    Those that PyTorch traces with are no others than the tensors that they stand for.
    """
    return all(not isinstance(t, Tensor) or type(t) in TENSOR_TYPES for t in tensors)


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
    if type(dropout) is nn.Dropout and dropout.training and dropout.p > 0:
        return False
    return is_plain(dropout, (nn.Dropout, nn.Identity))


def is_conv(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether its forward is torch.nn.Conv2d's; mmcv's differs for empty tensors alone."""
    kind = type(module)
    return (kind is nn.Conv2d and kind.forward is FORWARDS[kind]) or (
        isinstance(module, nn.Conv2d)
        and (kind.__module__, kind.__name__) == ("mmcv.cnn.bricks.wrappers", "Conv2d")
    )


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution that computes what a linear layer does, at each place."""
    return (
        is_conv(module)
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding in ((0, 0), "valid", "same")
        and module.groups == 1
    )


def is_watched(x: Tensor) -> bool:
    """Whether a transform or a tracer is at work, torch.fx included, whose tensors are symbols."""
    return bool(transforms.active()) or transforms.is_symbol(x)


def _linear_weights(layers: Sequence[Projection], x: Tensor) -> list[Weights] | None:
    """Weights and biases where the op can compute the layers: plain, of x's dtype, C -> C or 2C.

    What `is_plain` and `fits` ask, spelled out: asked of every layer in every call, it calls next
    to nothing.
    """
    for layer in layers:
        kind = type(layer)
        if not isinstance(layer, tuple) and (
            kind not in LINEAR_TYPES
            or kind.forward is not FORWARDS[kind]
            or layer._forward_pre_hooks
            or layer._forward_hooks
            or layer._backward_pre_hooks
            or layer._backward_hooks
            or "forward" in layer.__dict__
        ):
            return None
    C, dtype, cast = x.shape[-1], x.dtype, autocast.is_enabled(x)
    rows = (C, 2 * C, C) if len(layers) == 3 else (C, C, C, C)
    found = [*map(_weights, layers)]
    for (weight, bias), row in zip(found, rows, strict=True):
        if weight.shape != (row, C) or type(weight) not in TENSOR_TYPES:
            return None
        if bias is not None and type(bias) not in TENSOR_TYPES:
            return None
        if not ((weight.dtype == dtype and (bias is None or bias.dtype == dtype)) or cast):
            return None
    return found


def _is_patch_conv(conv: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    if not (is_conv(conv) and not is_listened_to(conv)):
        return False
    weight, bias = _weights(conv)
    C = x.shape[-1]
    return (
        bias is not None
        and fits(x, weight, bias)
        # with groups they would be others
        and weight.shape[:2] == (C, C)
        and _moves_by_patches(conv)
    )


def _moves_by_patches(conv: nn.Module) -> bool:
    """Whether each pixel is in one patch, by what else there is to a convolution than tensors."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.padding in ("valid", (0, 0))
        and conv.dilation == (1, 1)
    )


def _is_layer_norm(norm: nn.Module, x: Tensor) -> TypeGuard[nn.LayerNorm]:
    if not is_plain(norm, (nn.LayerNorm,)):
        return False
    weight, bias = _weights(norm)
    return (
        type(weight) in TENSOR_TYPES
        and type(bias) in TENSOR_TYPES
        and weight.shape == x.shape[-1:]
        and weight.dtype == bias.dtype  # pyright: ignore[reportOptionalMemberAccess]
        and weight.dtype in (x.dtype, torch.float32)
        and norm.eps > 0
    )


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a layer's tensors are plain, and in x's dtype or cast to it."""
    if type(weight) not in TENSOR_TYPES:
        return False
    if bias is None:
        return weight.dtype == x.dtype or autocast.is_enabled(x)
    return type(bias) in TENSOR_TYPES and (
        weight.dtype == bias.dtype == x.dtype or autocast.is_enabled(x)
    )


def _weights(layer: nn.Module | Weights) -> Weights:
    """A module's weight and bias, or what stands for them."""
    if isinstance(layer, tuple):
        return layer
    own = layer._parameters
    if "weight" in own and "bias" in own:
        # where torch.nn.Module.__getattr__ looks in the end, ten times as fast
        return own["weight"], own["bias"]  # pyright: ignore[reportReturnType]
    return layer.weight, layer.bias  # pyright: ignore[reportReturnType]


def _project(x: Tensor, layer: Projection) -> Tensor:
    return F.linear(x, *layer) if isinstance(layer, tuple) else layer(x)


def _stacked(key: Weights, value: Weights) -> Weights:
    """One projection that does what the two do, keys first."""
    weight = torch.cat((key[0], value[0]))
    if key[1] is None and value[1] is None:
        return weight, None
    biases = (w.new_zeros(w.shape[0]) if bias is None else bias for w, bias in (key, value))
    return weight, torch.cat(tuple(biases))
