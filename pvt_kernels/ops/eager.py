"""Whether a call is an ordinary one, which needs none of what PyTorch's dispatcher does."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

# exactly these: a subclass may hear of every operation
_PLAIN = {Tensor, torch.nn.Parameter, type(None)}


def is_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nobody watches what happens to the tensors: no compiler or tracer, no transform of
    functorch, no forward-mode derivative, no mode and no subclass."""
    # first, since torch.compile can't trace the others
    if torch.compiler.is_compiling():
        return False
    return _PLAIN.issuperset(map(type, tensors)) and _is_unwatched()


def is_eager(x: Tensor) -> bool:
    """Whether x is plain, as `is_plain` has it."""
    return not torch.compiler.is_compiling() and type(x) in _PLAIN and _is_unwatched()


def _is_unwatched() -> bool:
    return (
        not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )
