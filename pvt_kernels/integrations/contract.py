"""Whether a module's own forward computes what its adapter does: both are tried.

A fork may have the same parts and parameters as the module that it was made from, and return
something else. Its source says so in too many ways, so it is run: on a few tokens, in fp64 on the
CPU, with random parts of plain kinds in place of its own; in evaluation, and in training with the
gradients of what it is given. Whatever its parts are, adapters call them as they are; what is in
question is the code around them. Neither the module nor any random state changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from pvt_kernels import backends
from pvt_kernels.integrations.adapter import Adapter
from pvt_kernels.integrations.structure import sizes
from pvt_kernels.parts import Parts

TOLERANCE = 1e-8


class _NotServed(Exception):
    """The adapter would run the module's own forward."""


def broken(module: nn.Module, adapter: Adapter) -> str:
    """In what way an unpatched module's results are not those of its adapter; "" if they are."""
    with (
        _disable_current_modes(),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
        backends.use_backend("sdpa"),
    ):
        torch.default_generator.manual_seed(0)
        try:
            twin, args = _twin_and_arguments(module, adapter)
        except Exception as error:
            return f"its own forward can't be tried: {_in_a_line(error)}"
        return _tried(twin, adapter, args) or _tried(twin, adapter, args, training=True)


def _tried(twin: Any, adapter: Adapter, args: tuple, training: bool = False) -> str:
    """In what way a twin's results, and in training its gradients, are not its adapter's."""
    run = _with_gradients if training else _without_gradients
    try:
        twin.train(training)
        expected = run(partial(type(twin).forward, twin), args)
    except Exception as error:
        return f"its own forward can't be tried: {_in_a_line(error)}"
    try:
        actual = run(partial(adapter.trial or adapter.forward, twin, _own(twin, adapter)), args)
    except _NotServed:
        # in training it does so with a dropout
        unknown = "it has a part whose kind is not known, and would always run its own forward"
        return "" if training else unknown
    except Exception as error:
        return f"its own forward takes what the adapter does not: {_in_a_line(error)}"
    difference = _difference(*expected, *actual)
    return f"{difference} in training" if difference and training else difference


def _without_gradients(forward: Callable, args: tuple) -> tuple[Any, tuple]:
    with torch.no_grad():
        return forward(*args), ()


def _with_gradients(forward: Callable, args: tuple) -> tuple[Any, tuple]:
    """What it returns, and the gradients of all given tensors of a function of that."""
    torch.default_generator.manual_seed(1)
    args = tree_map_only(Tensor, lambda t: t.detach().requires_grad_(), args)
    given = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
    with torch.enable_grad():
        result = forward(*args)
        found = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
    by = [t.detach() for t in found]
    result = tree_map_only(Tensor, Tensor.detach, result)
    if not found:
        return result, (None,) * len(given)
    return result, torch.autograd.grad(found, given, by, allow_unused=True)


def _twin_and_arguments(module: Any, adapter: Adapter) -> tuple[Any, tuple]:
    if adapter.parts is None:
        twin = _twin(module, {})
        return twin, adapter.example(twin)
    parts = adapter.parts(module)
    sr_ratio = 1 if parts.conv is None else parts.conv.kernel_size[0]  # pyright: ignore[reportIndexIssue]
    # rows and columns are left over
    H, W = 2 * sr_ratio + 1, 3 * sr_ratio + (sr_ratio > 1)
    tokens = torch.randn(2, H * W, sizes(parts.out)[0], dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    return (twin := _twin(module, _stand_ins(parts))), adapter.example(twin, tokens, H, W)


def _own(twin: nn.Module, adapter: Adapter) -> Any:
    def own(*args: Any) -> Any:
        # what is tried in an adapter's place is made of the module's own forward
        if adapter.trial is None:
            raise _NotServed
        return type(twin).forward(twin, *args)

    return own


def _difference(expected: Any, gradients: tuple, actual: Any, other_gradients: tuple) -> str:
    difference = _difference_of(expected, actual)
    if not difference and _difference_of(gradients, other_gradients):
        return "its forward has other gradients"
    return difference


def _difference_of(expected: Any, actual: Any) -> str:
    (tensors, shape), (others, other_shape) = tree_flatten(expected), tree_flatten(actual)
    if shape != other_shape:
        return f"its forward returns {_kind(expected)}, not {_kind(actual)}"
    for one, other in zip(tensors, others, strict=True):
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            if one is not other:
                return f"its forward returns {_kind(one)} where None is known, or None"
        elif one.shape != other.shape or one.dtype != other.dtype:
            return f"its forward returns {tuple(one.shape)} where {tuple(other.shape)} is known"
        elif not torch.allclose(one, other, rtol=0, atol=TOLERANCE * float(other.abs().max())):
            return "its forward computes something else"
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _in_a_line(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}"


def _stand_ins(parts: Parts) -> dict[int, nn.Module]:
    """By the id of each part a plain one of its sizes, in the place of whatever it is."""
    found: dict[int, nn.Module] = {}
    C = sizes(parts.out)[0]
    for layer in (parts.query, *parts.keys_values, parts.out):
        if isinstance(layer, nn.Module):
            rows, columns = sizes(layer)
            found[id(layer)] = _lively(nn.Linear(columns, rows))
    conv: Any = parts.conv
    if conv is not None:
        arguments = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
        further = (conv.padding, conv.dilation, conv.groups)
        found[id(conv)] = _lively(nn.Conv2d(*arguments, *further))
    if parts.norm is not None:
        found[id(parts.norm)] = _lively(nn.LayerNorm(C))
    pool: Any = parts.pool
    if pool is not None:
        found[id(pool)] = nn.AdaptiveAvgPool2d(pool.output_size)
        found[id(parts.activation)] = nn.GELU()
    for part in parts.beside:
        found[id(part)] = nn.Identity()
    return found


def _twin(module: Any, stand_ins: dict[int, nn.Module]) -> Any:
    """A module with the same attributes, in evaluation, without hooks, with random parameters."""
    twin = object.__new__(type(module))
    attributes = dict(vars(module))
    attributes.pop("forward", None)
    for name, value in attributes.items():
        if name.startswith("_") and "hooks" in name and isinstance(value, dict):
            attributes[name] = OrderedDict()
    attributes.update(training=False, _compiled_call_impl=None)
    if type(module) is nn.Dropout:
        # what it drops depends on the layout in memory, and is the adapter's to see at the call
        attributes["p"] = 0.0
    attributes["_modules"] = {
        name: None if child is None else stand_ins.get(id(child)) or _twin(child, stand_ins)
        for name, child in module._modules.items()
    }
    attributes["_parameters"] = {n: _like(p) for n, p in module._parameters.items()}
    attributes["_buffers"] = {name: _like_buffer(b) for name, b in module._buffers.items()}
    if hasattr(attributes.get("config"), "_attn_implementation"):
        # the core that also runs on the CPU in fp64, and returns no weights
        attributes["config"] = config = copy(attributes["config"])
        config.output_attentions = False
        config._attn_implementation = "sdpa"
    vars(twin).update(attributes)
    return twin


def _like(parameter: Tensor | None) -> nn.Parameter | None:
    if parameter is None:
        return None
    return nn.Parameter(_random(parameter.shape), requires_grad=False)


def _like_buffer(buffer: Tensor | None) -> Tensor | None:
    if buffer is None:
        return None
    # a variance is positive; what counts is counted on in training
    return _random(buffer.shape).abs() if buffer.is_floating_point() else buffer.clone()


def _lively(module: nn.Module) -> nn.Module:
    """With weights of unit gain, so that no part can be left out unseen."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            setattr(module, name, nn.Parameter(_random(parameter.shape), requires_grad=False))
    return module


def _random(shape: torch.Size) -> Tensor:
    fan_in = shape[1:].numel() if len(shape) > 1 else 1
    return torch.randn(shape, dtype=torch.float64) * fan_in**-0.5
