"""The classes of patched modules.

A patched module gets another class, made from its own: a subclass with the same name whose
forward is the adapter's. So its parameters, buffers, hooks and state stay the objects that they
were, copies and pickles are patched too, and unpatching gives the class back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial, wraps
from types import FunctionType
from typing import Any

from torch import nn

from pvt_kernels import backends
from pvt_kernels.integrations import (
    feed_forward,
    openmmlab,
    openmmlab_feed_forward,
    pvt,
    timm,
    transformers_pvt,
    transformers_pvt_v2,
    transformers_segformer,
    transformers_segformer_head,
)
from pvt_kernels.integrations.adapter import Adapter

AUTO = "auto"
MODULES = (
    pvt,
    timm,
    transformers_pvt,
    transformers_pvt_v2,
    transformers_segformer,
    transformers_segformer_head,
    openmmlab,
    openmmlab_feed_forward,
)
ADAPTERS: dict[str, Adapter] = {
    adapter.family: adapter
    for adapter in (*(module.ADAPTER for module in MODULES), *feed_forward.ADAPTERS)
}
# a patched class's own attribute: the class that it was made from
_ORIGINAL = "_pvt_kernels_original"


def patched_class(original: type[nn.Module], family: str, backend: str) -> type[nn.Module]:
    """A subclass of a module's class that computes its forward by an adapter."""
    return _patched_class(original, original.forward, family, backend)


@cache
def _patched_class(
    original: type[nn.Module], known: Callable, family: str, backend: str
) -> type[nn.Module]:
    adapter = ADAPTERS[family]

    def run(self: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        own = partial(original.forward, self)
        if original.forward is not known:
            # somebody gave the class another one since
            return own(*args, **kwargs)
        if backend == AUTO:
            return adapter.call(self, own, args, kwargs)
        with backends.use_backend(backend):
            return adapter.call(self, own, args, kwargs)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return run(self, args, kwargs)

    # torch.jit.script reads the source of what is wrapped, and looks its names up in the wrapper's
    # globals: of those this one needs none itself
    named = getattr(known, "__globals__", globals())
    forward = FunctionType(forward.__code__, named, closure=forward.__closure__)

    def reduce(self: nn.Module, protocol: int) -> tuple:
        make, arguments, *state = original.__reduce_ex__(self, protocol)
        arguments = tuple(original if a is type(self) else a for a in arguments)
        return (_rebuild, (family, backend, make, arguments), *state)

    # the same names: others find modules by them, such as a sharding policy
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {**names, "forward": wraps(known)(forward), "__reduce_ex__": reduce}
    metaclass: Any = type(original)
    return metaclass(original.__name__, (original,), {**members, _ORIGINAL: original})


def _rebuild(family: str, backend: str, make: Callable[..., nn.Module], arguments: tuple):
    """A copy or an unpickled module, patched as what it is a copy of."""
    module = make(*arguments)
    module.__class__ = patched_class(type(module), family, backend)
    return module


def restore(modules: Iterable[nn.Module]) -> None:
    """Give those of the modules that are patched their own class back.

    Raises:
        RuntimeError: if something changed a patched module's class since; nothing is changed.
    """
    patched = [module for module in modules if is_patched(module)]
    for module in patched:
        if _ORIGINAL not in vars(type(module)):
            raise RuntimeError(
                f"unpatch: the class of a patched {type(module).__name__} was changed since; undo "
                "that first"
            )
    for module in patched:
        module.__class__ = getattr(type(module), _ORIGINAL)


def is_patched(module: nn.Module) -> bool:
    """Whether the module itself is a patched one."""
    return hasattr(type(module), _ORIGINAL)
