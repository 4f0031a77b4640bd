"""transformers' SegFormer decode head, with its projections before the upsampling.

The head projects each stage's map to D channels, upsamples the four to the largest, and fuses
them by a convolution of 1 x 1 without a bias over the 4 D channels. All of it is linear, and
upsampling goes along with what mixes channels alone, so

    fuse(concat(up(proj_i(x_i)))) = sum of up((F_i P_i) x_i + F_i p_i)

with the fuse's weight F_i for stage i, and the projection's weight P_i and bias p_i. That takes a
25th of the operations, and two maps of D channels at a time instead of eight.

On a CPU not even these exist in inference: a few rows of them at a time go through all steps, in
memory that stays in cache and is the process's already. To touch a map's memory for the first time
takes ten times as long as to add to the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_kernels.integrations.adapter import Adapter, find
from pvt_kernels.integrations.structure import is_of_the_same_source
from pvt_kernels.ops import autocast
from pvt_kernels.ops.eager import is_eager
from pvt_kernels.parts import are_plain, drops_nothing, is_listened_to, is_plain, is_pointwise

# places of the largest map at a time: with SegFormer's 768 channels 12 MB in fp32
BAND = 4096


def _projections(module: Any) -> Any:
    """One for each stage, in a module with the child `proj`."""
    return find(module, "linear_projections", "linear_c")


def _forward(
    module: Any, original: Callable, encoder_hidden_states: Sequence[Tensor], **kwargs: Any
) -> Tensor:
    maps = all(states.ndim == 4 for states in encoder_hidden_states)
    if not maps or not _serves(module, encoder_hidden_states[0]):
        return original(encoder_hidden_states, **kwargs)
    projections = _projections(module)
    if len(encoder_hidden_states) != len(projections):
        return original(encoder_hidden_states, **kwargs)
    fuse = module.linear_fuse.weight.flatten(1)
    # the last stage's channels come first
    weights = fuse.chunk(len(projections), dim=1)[::-1]
    bias = fuse @ torch.cat([p.proj.bias for p in reversed(projections)])
    weights = [w @ p.proj.weight for w, p in zip(weights, projections, strict=True)]
    if _takes_bands(module, encoder_hidden_states):
        return _by_bands(module, encoder_hidden_states, weights, bias)
    size = encoder_hidden_states[0].shape[2:]
    fused = part = None
    for states, weight in zip(encoder_hidden_states, weights, strict=True):
        part = F.conv2d(states, weight[..., None, None], bias if fused is None else None)
        if part.shape[2:] != size:
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        fused = part if fused is None else fused.add_(part)
    # not one expression: the large maps are to go as soon as they are read
    del part
    fused = module.batch_norm(fused)
    fused = module.activation(fused)
    return module.classifier(module.dropout(fused))


def _by_bands(
    module: Any, maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor
) -> Tensor:
    """The scores from a band of the largest map's rows at a time, where `_takes_bands` says so."""
    largest, *others = (states.permute(0, 2, 3, 1) for states in maps)
    # with the channels side by side, as PyTorch upsamples fastest
    parts = [F.linear(o, w).permute(0, 3, 1, 2) for o, w in zip(others, weights[1:], strict=True)]
    height, width = maps[0].shape[2:]
    rows = max(1, BAND // (len(largest) * width))
    scores = []
    for first in range(0, height, rows):
        last = min(first + rows, height)
        fused = F.linear(largest[:, first:last], weights[0], bias).permute(0, 3, 1, 2)
        for part in parts:
            fused.add_(_upsampled_rows(part, height // part.shape[2], width, first, last))
        fused = module.activation(module.batch_norm(fused))
        scores.append(module.classifier(module.dropout(fused)).contiguous())
    return torch.cat(scores, dim=2)


def _upsampled_rows(part: Tensor, scale: int, width: int, first: int, last: int) -> Tensor:
    """Rows [first, last) of a map that is `scale` times as high, and `width` wide."""
    # a row on either side, which bilinear interpolation looks at
    begin = max(first // scale - 1, 0)
    end = min(-(-last // scale) + 1, part.shape[2])
    size = ((end - begin) * scale, width)
    rows = F.interpolate(part[:, :, begin:end], size=size, mode="bilinear", align_corners=False)
    return rows[:, :, first - begin * scale : last - begin * scale]


def _takes_bands(module: Any, maps: Sequence[Tensor]) -> bool:
    """Whether all that follows the sums works place by place, and nobody sees that it is called
    more than once."""
    norm, classifier = module.batch_norm, module.classifier
    behind = (norm, module.activation, module.dropout, classifier)
    height = maps[0].shape[2]
    return (
        maps[0].device.type == "cpu"
        and not torch.is_grad_enabled()
        and all(map(is_eager, maps))
        and type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.running_mean is not None
        and type(module.activation) in (nn.ReLU, nn.GELU)
        and drops_nothing(module.dropout)
        and is_pointwise(classifier)
        and not any(map(is_listened_to, behind))
        and all(height % states.shape[2] == 0 for states in maps)
    )


def _serves(module: Any, states: Tensor) -> bool:
    """Whether the parts are still those that the sums stand for, and nobody is left out."""
    try:
        if _reasons(module):
            return False
    except AttributeError:
        # a part of another kind has taken the place of one
        return False
    projections = _projections(module)
    linears = [projection.proj for projection in projections]
    fuse = module.linear_fuse
    tensors = [fuse.weight, *(t for linear in linears for t in (linear.weight, linear.bias))]
    return (
        are_plain(tensors)
        and (autocast.is_enabled(states) or all(t.dtype == states.dtype for t in tensors))
        and all(is_of_the_same_source(part, module) for part in projections)
        and all(is_plain(linear, (nn.Linear,)) for linear in linears)
        and not any(is_listened_to(part) for part in (fuse, *projections))
    )


def _example(module: Any) -> tuple[tuple[Tensor, ...]]:
    channels = (projection.proj.in_features for projection in _projections(module))
    maps = (
        torch.randn(2, C, max(1, 9 >> stage), max(1, 7 >> stage), dtype=torch.float64)
        for stage, C in enumerate(channels)
    )
    return (tuple(maps),)


def _reasons(module: Any) -> list[str]:
    projections, fuse = _projections(module), module.linear_fuse
    reasons = []
    if not is_pointwise(fuse) or fuse.bias is not None:
        reasons.append("its linear_fuse is no convolution of 1x1 without a bias")
    linears: list[Any] = [find(projection, "proj") for projection in projections]
    if not all(type(linear) is nn.Linear and linear.bias is not None for linear in linears):
        reasons.append("its projections are no plain Linear with a bias")
    elif len({linear.out_features for linear in linears}) > 1 or (
        len(linears) * linears[0].out_features != fuse.in_channels
    ):
        reasons.append("its linear_fuse does not take what its projections give")
    return reasons


ADAPTER = Adapter(
    family="transformers SegFormer head",
    children=("linear_fuse", "batch_norm", "activation", "dropout", "classifier"),
    signatures=(("encoder_hidden_states",),),
    optional=("kwargs",),
    parts=None,
    forward=_forward,
    example=_example,
    reasons=_reasons,
)
