"""Calls of an op that were made before: found again by next to nothing but their form."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

from pvt_kernels.backends.recent import Recent
from pvt_kernels.backends.tensors import records_gradients
from pvt_kernels.ops import autocast
from pvt_kernels.ops.sr_attention import KEPT

# of x and the parameters
Run = Callable[[Tensor, tuple[Tensor | None, ...]], Tensor]

# of one key: what differs is strides, dtypes, devices, and whether gradients are recorded
FORMS = 8


class Repeated:
    """A call, for others of the same form.

    Args:
        tensors: x and those of the parameters that are there; nothing but their form is used.
        inference, differentiable: what gives the result, without derivatives and with them.
    """

    def __init__(self, tensors: Sequence[Tensor], inference: Run, differentiable: Run) -> None:
        # What torch.compile checks before each call: exact types, dtypes, devices, sizes, strides,
        # which require gradients, and the dispatcher's keys, of which autocast is one. Python takes
        # ten times as long to ask.
        guard = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        self.is_of = guard.check
        self.run = differentiable if records_gradients(*tensors) else inference


_kept: Recent[tuple[Repeated, ...]] = Recent(KEPT)


def find(key: Hashable, tensors: Sequence[Tensor]) -> Run | None:
    """What runs the call of this key and form that was made before, where `is_eager` holds.

    Args:
        key: every fact about a call that no tensor has, the surroundings and whether gradients
            are on among them.
        tensors: x and those of the parameters that are there.
    """
    for call in _kept.get(key) or ():
        if call.is_of(*tensors):
            return call.run
    return None


def remember(key: Hashable, tensors: Sequence[Tensor], inference: Run, differentiable: Run) -> None:
    """For `find`.

    Nothing is kept under autocast, which takes new casts of the parameters in each call.
    """
    if autocast.is_enabled(tensors[0]):
        return
    repeated = Repeated(tensors, inference, differentiable)
    # it is never so of a tensor that is there twice
    if repeated.is_of(*tensors):
        _kept.put(key, (repeated, *(_kept.get(key) or ())[: FORMS - 1]))
