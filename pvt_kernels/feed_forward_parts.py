"""A feed-forward network from the parts of a live module, whatever they are called.

This package's models and the adapters for other libraries' modules are built on it. It runs the op
on the parts' parameters, and only where nothing stands in the parts' place that it doesn't know.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from pvt_kernels._C.modules import are_listened_to, tensors_of
from pvt_kernels.backends import surroundings
from pvt_kernels.ops import repeated
from pvt_kernels.ops.eager import is_eager
from pvt_kernels.ops.feed_forward import call_of, differentiable, feed_forward, inference
from pvt_kernels.parts import (
    FORWARDS,
    LINEAR_TYPES,
    drops_nothing,
    fits,
    is_conv,
    is_listened_to,
    is_plain,
    is_pointwise,
    is_watched,
)

# timm's and transformers' own modules of the exact GELU
GELUS = (("timm.layers.activations", "GELU"), ("transformers.activations", "GELUActivation"))
BEFORE_CONV = (nn.ReLU, nn.Identity)


class FeedForwardParts(NamedTuple):
    """Where the parts of a feed-forward network are.

    Attributes:
        fc1, fc2: the linear layers, or with `pointwise` 1 x 1 convolutions, which compute the same.
        activation: behind fc1, or behind the convolution if there is one.
        dropout: of what the activation gives; None if there is none.
        conv: the depthwise convolution; None if there is none.
        before_conv: a ReLU, or what does nothing; None if there is none.
        bypassed: further modules whose own calls are left out: what other parts lie in.
        beside: modules that are called after fc2 by whoever made this.
        pointwise: whether fc1 and fc2 are convolutions, which would be called on maps.
    """

    fc1: nn.Module
    fc2: nn.Module
    activation: nn.Module
    dropout: nn.Module | None = None
    conv: nn.Module | None = None
    before_conv: nn.Module | None = None
    bypassed: tuple[nn.Module, ...] = ()
    beside: tuple[nn.Module, ...] = ()
    pointwise: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """Hidden channels, and those of the tokens."""
        unit = "channels" if self.pointwise else "features"
        return getattr(self.fc1, f"out_{unit}"), getattr(self.fc1, f"in_{unit}")


def forward(parts: FeedForwardParts, x: Tensor, H: int, W: int) -> Tensor | None:
    """Of tokens (B, N, C) on a map of H x W, before `beside`; None where it would not do all that
    calling the parts does: a part is not known, or somebody listens.

    Without a convolution of any x (..., C), such as pooled tokens.
    """
    # in eager mode first what was computed before, of parts that are what they were
    found = key = None
    if is_eager(x):
        found = _of_eager(parts, x)
    if found is not None:
        (parameters, tensors, absent), facts = found
        around = surroundings(x.device, x.dtype)
        sizes = (x.shape, H, W, type(H), type(W))
        key = (*facts, *sizes, absent, torch.is_grad_enabled(), around)
        run = repeated.find(key, tensors)
        if run is not None:
            return run(x, parameters)
    if not _serves(parts, x):
        return None
    layers = _layers(parts)
    options = (activation_name(parts.activation), type(parts.before_conv) is nn.ReLU)
    tokens = x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])
    result = feed_forward(tokens, H, W, *layers, *options, _dropout_p(parts.dropout))  # pyright: ignore[reportCallIssue, reportArgumentType]
    if tokens is not x:
        return result.view(x.shape)
    if found is not None:
        call = call_of(x, H, W, layers, *options)  # pyright: ignore[reportArgumentType]
        runs = partial(inference, call), partial(differentiable, call)
        repeated.remember(key, found[0][1], *runs)
    return result


def _of_eager(parts: FeedForwardParts, x: Tensor) -> tuple[tuple, tuple] | None:
    """What `tensors_of` finds, and whatever else a call depends on; None where no call is kept."""
    activation, conv, before_conv = parts.activation, parts.conv, parts.before_conv
    dropout = parts.dropout
    if parts.pointwise or not (conv is None or (type(conv) is nn.Conv2d and _keeps_the_map(conv))):
        return None
    if are_listened_to((activation, before_conv, *parts.bypassed)):
        return None
    if dropout is not None and not drops_nothing(dropout):
        return None
    found = tensors_of(x, (parts.fc1, conv, parts.fc2), FORWARDS)
    if found is None:
        return None
    groups = None if conv is None else conv.groups
    approximate = getattr(activation, "approximate", None)
    return found, (type(activation), approximate, type(before_conv), groups)


def _serves(parts: FeedForwardParts, x: Tensor) -> bool:
    fc1, fc2, conv = parts.fc1, parts.fc2, parts.conv
    if is_watched(x):
        return False
    if not _is_linear(fc1, parts.pointwise) or not _is_linear(fc2, parts.pointwise):
        return False
    D, C = fc1.weight.shape[:2]
    others = [parts.activation, *parts.bypassed]
    if parts.before_conv is not None:
        others.append(parts.before_conv)
    return (
        fc2.weight.shape[:2] == (C, D)
        and x.shape[-1] == C
        and (conv is None or x.dim() == 3)
        and fits(x, fc1.weight, fc1.bias)
        and fits(x, fc2.weight, fc2.bias)
        and (conv is None or (_is_depthwise(conv, D) and fits(x, conv.weight, conv.bias)))
        and activation_name(parts.activation) is not None
        and (parts.before_conv is None or type(parts.before_conv) in BEFORE_CONV)
        and (parts.dropout is None or is_plain(parts.dropout, (nn.Dropout, nn.Identity)))
        and not any(map(is_listened_to, others))
    )


def _layers(parts: FeedForwardParts) -> tuple[Tensor | None, ...]:
    """Weights and biases, as `feed_forward` takes them."""
    fc1, fc2, conv = parts.fc1, parts.fc2, parts.conv
    assert isinstance(fc1, (nn.Linear, nn.Conv2d)) and isinstance(fc2, (nn.Linear, nn.Conv2d))
    w1, w2 = fc1.weight, fc2.weight
    if parts.pointwise:
        w1, w2 = w1.flatten(1), w2.flatten(1)
    dw = (None, None)
    if conv is not None:
        assert isinstance(conv, nn.Conv2d)
        dw = (conv.weight, conv.bias)
    return (w1, fc1.bias, *dw, w2, fc2.bias)


def _dropout_p(dropout: nn.Module | None) -> float:
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def known_reasons(parts: FeedForwardParts) -> list[str]:
    """Every reason why no call can be served; a hook or a replaced layer may go away again."""
    reasons = []
    kind = nn.Conv2d if parts.pointwise else nn.Linear
    for name, layer in (("fc1", parts.fc1), ("fc2", parts.fc2)):
        if not isinstance(layer, kind):
            reasons.append(f"its {name} is a {type(layer).__name__}, not a {kind.__name__}")
        elif parts.pointwise and not is_pointwise(layer):
            reasons.append(f"its {name} is no convolution of 1 x 1")
    known = not reasons
    if known and parts._replace(fc1=parts.fc2).sizes != parts.sizes[::-1]:
        reasons.append("its layers do not lead back to the tokens' channels")
    if activation_name(parts.activation) is None:
        kind = type(parts.activation).__name__
        reasons.append(f"its activation is a {kind}, not an exact GELU or ReLU")
    if known and parts.conv is not None and not _is_depthwise(parts.conv, parts.sizes[0]):
        reasons.append("its convolution is not depthwise, 3 x 3 and padded by zeros")
    if parts.before_conv is not None:
        kind = type(parts.before_conv)
        if kind not in BEFORE_CONV:
            reasons.append(f"before its convolution is a {kind.__name__}, not a ReLU")
        elif kind is nn.ReLU and parts.conv is None:
            reasons.append("it has a ReLU, but no convolution")
    if parts.dropout is not None and not isinstance(parts.dropout, (nn.Dropout, nn.Identity)):
        reasons.append(f"its dropout is a {type(parts.dropout).__name__}")
    return reasons


def activation_name(activation: nn.Module) -> str | None:
    """What the op calls the activation; None if it has no such one."""
    kind = type(activation)
    if kind is nn.ReLU:
        return "relu"
    exact = isinstance(activation, nn.GELU) and activation.approximate == "none"
    if (kind is nn.GELU and exact) or (kind.__module__, kind.__name__) in GELUS:
        return "gelu"
    return None


def _is_linear(layer: nn.Module, pointwise: bool) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether it is exactly the layer that it is taken for, and nobody listens to it."""
    if not pointwise:
        return is_plain(layer, LINEAR_TYPES)
    return is_pointwise(layer) and not is_listened_to(layer)


def _is_depthwise(conv: nn.Module, channels: int) -> TypeGuard[nn.Conv2d]:
    """Whether it is a 3 x 3 depthwise convolution with zeros around the map."""
    return (
        is_conv(conv)
        and not is_listened_to(conv)
        and conv.weight.shape == (channels, 1, 3, 3)
        and conv.groups == channels
        and _keeps_the_map(conv)
    )


def _keeps_the_map(conv: nn.Conv2d) -> bool:
    """Whether a convolution of 3 x 3 gives a place for each, with zeros around the map."""
    return (
        conv.stride == (1, 1)
        and conv.padding in ((1, 1), "same")
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )
