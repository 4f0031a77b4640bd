"""The choice of a backend: one priority list a device type, one place that decides."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from pvt_kernels._C import cpu as cpu_kernels
from pvt_kernels._C import modules
from pvt_kernels.backends import forced as context
from pvt_kernels.backends import transforms
from pvt_kernels.backends.base import Backend, FeedForwardInputs, Inputs, describe
from pvt_kernels.backends.tensors import allows_tf32

# the folders
BACKEND_NAMES = ("cuda", "triton", "cpu", "sdpa", "reference")
BACKENDS: dict[str, Backend] = {
    name: import_module(f"pvt_kernels.backends.{name}").BACKEND for name in BACKEND_NAMES
}
# the backends that are PyTorch's and not this package's kernels
PYTORCH_NAMES = ("sdpa", "reference")

_ENVIRONMENT_VARIABLE = "PVT_KERNELS_BACKEND"
# every variable that a backend's choice or its reasons depend on
_ENVIRONMENT = (_ENVIRONMENT_VARIABLE, "PVT_KERNELS_CPU_CAPABILITY", "TRITON_INTERPRET")
_warned: set[tuple[str, ...]] = set()
# what was chosen before, by everything that the choice depends on
_chosen: dict[tuple, str] = {}
_recorded: ContextVar[list[Decision] | None] = ContextVar("recorded", default=None)


@dataclass(frozen=True)
class SdpaFirst:
    """Where PyTorch's functions come before this package's kernels.

    Never by the number of tokens, which torch.compile may leave open: see base.py.

    Attributes:
        device_type: of the tensors.
        reason: that the choice gives, with what is known under benchmarks/results.
        op: None for all.
        dtype: of the tensors; None for all.
        code_path: that the CPU's kernels take, as PVT_KERNELS_CPU_CAPABILITY may force it: what is
            measured with it is what runs by default on CPUs that have no more. None for all.
        of: whether a call is such a one, by what else is known of it.
    """

    device_type: str
    reason: str
    op: str | None = None
    dtype: torch.dtype | None = None
    code_path: str | None = None
    of: Callable[[Any], bool] = lambda inputs: True

    def holds(self, inputs: Inputs) -> bool:
        return (
            inputs.device.type == self.device_type
            and self.op in (None, inputs.op)
            and self.dtype in (None, inputs.dtype)
            and (self.code_path is None or self.code_path == cpu_kernels.capability())
            and self.of(inputs)
        )


def _wide_without_convolution(inputs: FeedForwardInputs) -> bool:
    """The products of PVT's stages 3 and 4 alone, whose hidden layers are small."""
    return inputs.channels >= 256 and not inputs.convolved


_WIDE = (
    "sdpa, PyTorch's layers, comes first for feed-forward networks of 256 channels or more without "
    "a convolution in {} on CPUs with {}: a training step, in which this package computes the "
    "hidden layer again, takes up to a quarter less time there"
)


SDPA_FIRST = (
    SdpaFirst(
        "cpu",
        "sdpa comes first in bfloat16 on CPUs with AMX, which its products use: no run under "
        "benchmarks/results shows these kernels to be faster there",
        dtype=torch.bfloat16,
        code_path="amx_bf16",
    ),
    SdpaFirst(
        "cpu",
        _WIDE.format("bfloat16", "AVX-512-BF16"),
        op="feed_forward",
        dtype=torch.bfloat16,
        code_path="avx512_bf16",
        of=_wide_without_convolution,
    ),
    SdpaFirst(
        "cpu",
        _WIDE.format("float32", "AVX2 alone"),
        op="feed_forward",
        dtype=torch.float32,
        code_path="avx2",
        of=lambda inputs: inputs.gradients and _wide_without_convolution(inputs),
    ),
    SdpaFirst(
        "cuda",
        "sdpa, PyTorch's layers, comes first for feed-forward networks on GPUs: no run under "
        "benchmarks/results has these kernels",
        op="feed_forward",
    ),
)


@dataclass(frozen=True)
class Decision:
    """Which backend a call runs on, and for every backend the reasons why it can't or doesn't.

    Attributes:
        inputs: the op, and the facts about the call that the choice depends on.
        backend: the name of the one chosen; None where a forced one can't run the call.
        reasons: by the name of each backend, why it can't run the call or is never chosen for
            such; empty where it could have been chosen.
    """

    inputs: Inputs
    backend: str | None
    reasons: dict[str, list[str]]

    @property
    def note(self) -> str:
        """What else to know of how the backend runs the call, such as by which instructions."""
        return BACKENDS[self.backend].note(self.inputs) if self.backend is not None else ""

    @property
    def fused(self) -> bool:
        """Whether the backend computes the op as one: else it is PyTorch's around another op."""
        return self.backend is not None and BACKENDS[self.backend].has(self.inputs.op)

    def __str__(self) -> str:
        outcome = self.backend or "the forced backend can't run it"
        if self.backend is not None and not self.fused:
            outcome += f", PyTorch's linear layers around its {self.inputs.within}"
        if self.note:
            outcome += f" ({self.note})"
        lines = [f"{describe(self.inputs)}: {outcome}"]
        for name, reasons in self.reasons.items():
            lines.append(f"  {name}: {'; '.join(reasons) or 'can run'}")
        return "\n".join(lines)


def priority(inputs: Inputs) -> tuple[str, ...]:
    """The backends that may be chosen for such a call, the preferred first."""
    kernels = _kernels(inputs.device)
    if _sdpa_first(inputs) is not None:
        return ("sdpa", *kernels, "reference")
    return (*kernels, "sdpa", "reference")


def _kernels(device: torch.device) -> tuple[str, ...]:
    if device.type == "cpu":
        return ("cpu",)
    # ROCm builds of PyTorch call their devices "cuda" too
    if device.type == "cuda" and torch.version.cuda is not None:
        # Triton's dot has no tensor cores below compute capability 8.0
        older = torch.cuda.get_device_capability(device) < (8, 0)
        return ("cuda",) if older else ("triton", "cuda")
    return ()


def _sdpa_first(inputs: Inputs) -> SdpaFirst | None:
    return next((rule for rule in SDPA_FIRST if rule.holds(inputs)), None)


def get(name: str) -> Backend:
    """The backend of that name, as returned by `select`."""
    return BACKENDS[name]


def forced() -> str | None:
    """The backend that use_backend() or PVT_KERNELS_BACKEND asks for, if either does."""
    if context.name is not None:
        return context.name
    name = os.environ.get(_ENVIRONMENT_VARIABLE)
    if not name:
        return None
    _check_name(name, f"the environment variable {_ENVIRONMENT_VARIABLE}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force every op of this package onto one backend, in this thread or asyncio task alone.

    A call that the backend can't run raises RuntimeError with all reasons. Takes precedence over
    the environment variable PVT_KERNELS_BACKEND, which holds for the whole process. As with every
    contextvars.ContextVar a thread that starts within does not inherit it, and so neither do the
    replicas of torch.nn.DataParallel: contextvars.copy_context().run carries it over. A backward
    runs on the backend of its forward in any case.

    Args:
        name: "cuda", "triton", "cpu", "sdpa" or "reference".

    Raises:
        ValueError: for another name.
    """
    _check_name(name, "use_backend: name")
    # not by a token, with which torch.compile could not put it back
    previous, context.name = context.name, name
    try:
        yield
    finally:
        context.name = previous


def decide(inputs: Inputs) -> Decision:
    """The choice for one call: the forced backend, else the first of the priority list that can.

    Raises:
        ValueError: if PVT_KERNELS_BACKEND names no backend.
    """
    names = priority(inputs)
    able = {name: _not_supported_reasons(name, inputs) for name in BACKEND_NAMES}
    wanted = forced()
    candidates = names if wanted is None else (wanted,)
    chosen = next((name for name in candidates if not able[name]), None)
    reasons = {}
    for name in (*names, *(name for name in BACKEND_NAMES if name not in names)):
        reasons[name] = list(able[name])
        if name not in names and name != wanted:
            reasons[name].append(f"never chosen for tensors on {inputs.device.type}")
    if rule := _sdpa_first(inputs):
        for name in _kernels(inputs.device):
            if name != chosen:
                reasons[name].append(rule.reason)
    return Decision(inputs, chosen, reasons)


def select(inputs: Inputs) -> str:
    """The name of the backend that runs such a call.

    Warns once for each op and device type when PyTorch's own functions stand in for kernels that
    this package has.

    Raises:
        RuntimeError: if a backend is forced and can't run the call, with everyone's reasons.
        ValueError: if PVT_KERNELS_BACKEND names no backend.
    """
    record = _recorded.get()
    preferred = forced() or priority(inputs)[0]
    # what most calls come to; nobody asks for the other backends' reasons
    if record is None and not _not_supported_reasons(preferred, inputs):
        return preferred
    decision = decide(inputs)
    if record is not None and decision not in record:
        record.append(decision)
    if decision.backend is None:
        raise RuntimeError(f"the forced backend {forced()!r} can't run this call.\n{decision}")
    if forced() is None:
        _warn_of_fallback(decision)
    return decision.backend


def _not_supported_reasons(name: str, inputs: Inputs) -> list[str]:
    reasons = BACKENDS[name].not_supported_reasons(inputs)
    if not BACKENDS[name].composite and (active := transforms.active()):
        return [f"{active}, and only PyTorch's own functions support that", *reasons]
    return reasons


def choose(kind: Callable[..., Inputs], device: torch.device, *facts: object) -> str:
    """`select(kind(device, *facts))`, made once while torch.compile traces the caller.

    The compiled code keeps the answer, and compiles anew when use_backend() changes. Facts must
    be constants: of a size that dynamic shapes may make symbolic, pass operator.index(size).
    """
    return _choose(kind, context.name, device, *facts)


# dynamo guards on `forced` because `choose` reads it while traced
@transforms.constant_when_traced
def _choose(
    kind: Callable[..., Inputs], forced: str | None, device: torch.device, *facts: object
) -> str:
    recording = _recorded.get() is not None
    environment = map(os.environ.get, _ENVIRONMENT)
    key = (kind, device, facts, forced, *environment, _tf32(device), transforms.active())
    if recording or key not in _chosen:
        # while dynamo traces a use_backend(), it has not taken place yet
        with nullcontext() if forced is None else use_backend(forced):
            _chosen[key] = select(kind(device, *facts))
    return _chosen[key]


def surroundings(device: torch.device, dtype: torch.dtype) -> tuple[object, ...]:
    """All that a choice, and what follows of it, depends on beside the facts about the call.

    Where no transform or tracer is at work."""
    tf32 = dtype == torch.float32 and _tf32(device)
    return context.name, modules.environment(_ENVIRONMENT), tf32


def _tf32(device: torch.device) -> bool:
    # asking costs as much as a choice on the CPU, where nothing depends on it
    return device.type == "cuda" and allows_tf32()


def explain(fn: Callable[..., object], *args: object, **kwargs: object) -> list[Decision]:
    """Which backend runs each op inside `fn(*args, **kwargs)`, and why the others don't.

    Runs `fn` on fake tensors: nothing is computed, and no parameter, buffer or random state
    changes. `fn` may be an op of this package, a layer or a whole model:

        print(*pvt_kernels.explain(layer, x, H, W), sep="\\n")

    Returns:
        One Decision for each different call, in the order of their first use.

    Raises:
        RuntimeError: if a backend is forced and can't run a call, with everyone's reasons.
    """
    decisions: list[Decision] = []
    token = _recorded.set(decisions)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fn(
                *tree_map_only(torch.Tensor, mode.from_tensor, args),
                **tree_map_only(torch.Tensor, mode.from_tensor, kwargs),
            )
    finally:
        _recorded.reset(token)
    return decisions


def _warn_of_fallback(decision: Decision) -> None:
    inputs = decision.inputs
    names = priority(inputs)
    passed_over = [
        n for n in names[: names.index(decision.backend)] if BACKENDS[n].has(inputs.within)
    ]
    key = (inputs.op, inputs.device.type, transforms.active())
    if decision.backend not in PYTORCH_NAMES or not passed_over or key in _warned:
        return
    _warned.add(key)
    reasons = "; ".join(f"{name}: {', '.join(decision.reasons[name])}" for name in passed_over)
    warnings.warn(
        f"pvt_kernels: {describe(inputs)} falls back to PyTorch's own functions "
        f"(backend {decision.backend!r}), because {reasons}",
        stacklevel=2,
    )


def _check_name(name: str, argument: str) -> None:
    if name not in BACKEND_NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(BACKEND_NAMES)}, got {name!r}")
