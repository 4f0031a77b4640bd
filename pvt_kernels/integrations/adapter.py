"""What is known of one family of modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from pvt_kernels.backends import transforms
from pvt_kernels.feed_forward_parts import FeedForwardParts
from pvt_kernels.parts import Parts, are_plain


class Adapter(NamedTuple):
    """One family.

    Attributes:
        family: its name, unique.
        children: modules that each of the family has; dotted names are of descendants.
        signatures: how its forward's parameters begin; any of them.
        optional: the names of further parameters that the adapter knows.
        parts: where a module keeps what; None if it is no attention.
        forward: (module, the module's own forward, *the caller's arguments) -> what the caller
            expects. It calls the module's own where it can't serve a call.
        example: (module, tokens (B, H*W, C), H, W) -> arguments of the forward, to try it with; of
            what is no attention (module,) -> arguments.
        reasons: why it can't serve a module, before its parts are looked at.
        trial: what is tried in forward's place, where that shows more.
        feed_forward: where a module keeps what, if it is a feed-forward network; `patch` looks for
            those beside an attention.
    """

    family: str
    children: tuple[str, ...]
    signatures: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    parts: Callable[[nn.Module], Parts] | None
    forward: Callable[..., Any]
    example: Callable[..., tuple]
    reasons: Callable[[nn.Module], list[str]] = lambda module: []
    trial: Callable[..., Any] | None = None
    feed_forward: Callable[[nn.Module], FeedForwardParts] | None = None

    def matches(self, module: nn.Module) -> bool:
        """Whether the module is one of the family, or a variant of one."""
        if any(find(module, name) is None for name in self.children):
            return False
        if _begins_with(forward_parameters(module), self.signatures) is None:
            return False
        # a variant of an attention is worth a word
        return self.parts is not None or not self.unknown_parameters(module)

    def unknown_parameters(self, module: nn.Module) -> list[str]:
        """Parameters of the module's forward that the adapter does not know, such as a mask."""
        names = forward_parameters(module)
        begin = _begins_with(names, self.signatures) or ()
        return [name for name in names[len(begin) :] if name not in self.optional]

    def call(
        self, module: nn.Module, own: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The forward, or the module's own where PyTorch's functions alone serve the caller.

        That is under a transform or a tracer, and for tensors that compute in their own way.
        """
        values = _flat((*args, *kwargs.values()))
        if transforms.active() or any(map(transforms.is_symbol, values)) or not are_plain(values):
            return own(*args, **kwargs)
        return self.forward(module, own, *args, **kwargs)


def find(module: nn.Module, *names: str) -> nn.Module | None:
    """The first of these descendants that there is."""
    for name in names:
        child: nn.Module | None = module
        for step in name.split("."):
            children = {} if child is None else child._modules
            child = children.get(step)
        if child is not None:
            return child
    return None


def _flat(values: Sequence[Any]) -> list[Any]:
    """With the members of lists and tuples, such as the maps of four stages, in their place."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found.extend(value)
        else:
            found.append(value)
    return found


def forward_parameters(module: nn.Module) -> tuple[str, ...]:
    """Without self."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def _begins_with(
    names: tuple[str, ...], signatures: tuple[tuple[str, ...], ...]
) -> tuple[str, ...] | None:
    return next((s for s in signatures if names[: len(s)] == s), None)
