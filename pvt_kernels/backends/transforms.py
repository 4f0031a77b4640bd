"""What may be running a call other than PyTorch's eager mode, autograd and torch.compile.

Transforms of functions (torch.func, forward-mode differentiation) and tracers (torch.jit.trace,
torch.onnx) can look into PyTorch's own functions alone. The registry asks here, and such calls
run on a backend that consists of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.fx
from torch import Tensor
from torch._C import _get_tracing_state, _set_tracing_state  # type: ignore[attr-defined]
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable)
_NOTHING_TO_DO = nullcontext()


def constant_when_traced(function: Function) -> Function:
    """Have torch.compile call a function once, while it traces the caller, and keep the answer.

    What torch.compiler.assume_constant_result does; but that imports torch._dynamo, which takes
    as long as half of PyTorch's own import, and most programs never compile.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


# torch.compile guards on both of these states by itself
@constant_when_traced
def transform() -> str:
    """The transform that is at work, in words; "" where there is none."""
    # the level that PyTorch itself goes by; it has no public name
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation (jvp) is active"
    if peek_interpreter_stack() is not None:
        return "a transform of torch.func is active"
    return ""


@constant_when_traced
def tracer() -> str:
    """The tracer that is at work, in words; "" where there is none."""
    if _get_tracing_state() is not None:
        return "torch.jit.trace is active"
    # the exporter runs torch.export, which sets the first flag; the second is slow to ask for
    if torch.compiler.is_compiling() and "torch.onnx" in sys.modules:
        return "torch.onnx.export is active" if torch.onnx.is_in_onnx_export() else ""
    return ""


@constant_when_traced
def active() -> str:
    """The transform or tracer that is at work, in words; "" where there is none."""
    # what nearly every call comes to, by itself
    if (
        forward_ad._current_level < 0
        and peek_interpreter_stack() is None
        and _get_tracing_state() is None
        and "torch.onnx" not in sys.modules
    ):
        return ""
    return transform() or tracer()


def is_symbol(value: object) -> bool:
    """Whether torch.fx.symbolic_trace gives it for a value: it has neither sizes nor a dtype."""
    return isinstance(value, torch.fx.Proxy)


@constant_when_traced
def is_jit_tracing() -> bool:
    """Whether torch.jit.trace is at work, or what is built on it; sizes are tensors then."""
    return _get_tracing_state() is not None


def untraced() -> AbstractContextManager[None]:
    """Within it torch.jit.trace sees nothing, and sizes are integers: for checks."""
    return _tracing_paused() if is_jit_tracing() else _NOTHING_TO_DO


def integers(*sizes: int) -> tuple[int, ...]:
    """Sizes, also those that torch.jit.trace has made tensors, as integers. Within `untraced`."""
    return tuple(size.item() if isinstance(size, Tensor) else size for size in sizes)  # pyright: ignore[reportReturnType]


@contextmanager
def _tracing_paused() -> Iterator[None]:
    state = _get_tracing_state()
    _set_tracing_state(None)
    try:
        yield
    finally:
        _set_tracing_state(state)
