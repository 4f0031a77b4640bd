"""All that is checked, as one list of jobs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pvt_kernels.backends import BACKEND_NAMES, decide, explain, use_backend
from pvt_kernels.benchmarking import cases as bench
from pvt_kernels.benchmarking.memory import shortage
from pvt_kernels.benchmarking.runner import full_precision, one_line
from pvt_kernels.benchmarking.shapes import STAGES, LayerShape, Size, stage_shape
from pvt_kernels.checking import behaviours
from pvt_kernels.checking.cases import Case, layer_case, odd_cases, stage_cases
from pvt_kernels.checking.error_budget import Budget, Comparison
from pvt_kernels.checking.finding import (
    BEHAVIOUR,
    ERRORS,
    EXCEEDED,
    FAILED,
    MEMORY,
    NOT_RUN,
    PASSED,
    TIMING,
    Finding,
    verdict,
)
from pvt_kernels.checking.memory import LIMIT, layer_memory, nan_filled
from pvt_kernels.checking.timings import time_layer

QUICK_SIZE: Size = (224, 224)
# what the others are compared with
YARDSTICK = "reference"
CHECKED = tuple(name for name in BACKEND_NAMES if name != YARDSTICK)
# of the same bits in every run and the like: PyTorch's own functions promise nothing
KERNELS = tuple(name for name in CHECKED if name != "sdpa")
SEED = 1


@dataclass(frozen=True)
class Plan:
    """What to check.

    Attributes:
        device: "cpu" or "cuda".
        size: of the images whose layers the stages' are.
        batch: of them.
        dtypes: keys of benchmarking.cases.DTYPES.
        backends: of CHECKED.
        timed: the dtype in which layers are timed; None to time nothing.
    """

    device: str
    size: Size
    batch: int
    dtypes: tuple[str, ...] = tuple(bench.DTYPES)
    backends: tuple[str, ...] = CHECKED
    timed: str | None = None

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)


@dataclass(frozen=True)
class Job:
    """A part that is run as one, and recorded as one if it crashes."""

    label: str
    run: Callable[[], list[Finding]]


def plan_for(device: str, quick: bool) -> Plan:
    """The whole check of a device, with the images of detection, or with small ones."""
    on_gpu = device == "cuda"
    size = QUICK_SIZE if quick else bench.QUICK_SIZE
    timed = "fp32"
    if on_gpu:
        timed = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return Plan(device, size, batch=2 if on_gpu or quick else 1, timed=timed)


def jobs(plan: Plan) -> list[Job]:
    """Small shapes first, and times last."""
    found = [_errors(plan, case, dtype) for dtype in plan.dtypes for case in odd_cases()]
    for backend in plan.backends:
        for dtype in plan.dtypes if backend in KERNELS else ():
            for shape in behaviours.shapes(plan.torch_device):
                for name, holds in behaviours.behaviours(plan.torch_device):
                    label = f"{name}, {_layer(shape)}, {backend}, {dtype}"
                    call = partial(check_behaviour, plan, backend, shape, dtype, name, holds)
                    found.append(Job(label, call))
    stages = stage_cases(plan.size, plan.batch)
    found += [_errors(plan, case, dtype) for dtype in plan.dtypes for case in stages]
    for backend in plan.backends:
        for stage in STAGES if backend in KERNELS else ():
            call = partial(check_memory, plan, backend, stage)
            found.append(Job(f"memory of stage {stage}, {backend}", call))
    if plan.timed is not None:
        for mode in (bench.FORWARD, bench.TRAINING):
            for stage in STAGES:
                label = f"time of stage {stage}, {mode}"
                found.append(Job(label, partial(check_time, plan, stage, mode)))
    return found


def _errors(plan: Plan, case: Case, dtype: str) -> Job:
    return Job(f"{case}, {dtype}", partial(check_errors, plan, case, dtype))


def check_errors(plan: Plan, case: Case, dtype: str) -> list[Finding]:
    """A case on every backend that can run it, each held to the error of PyTorch's formula."""
    device, torch_dtype = plan.torch_device, bench.DTYPES[dtype]

    def finding(backend: str, status: str, detail: str, **figures: object) -> Finding:
        return Finding(ERRORS, case.op, case.shape, backend, dtype, status, detail, figures)

    lacking = None
    if device.type == "cuda":
        lacking = shortage(case.needed_bytes(torch_dtype), device)
    if lacking:
        return [finding(name, NOT_RUN, lacking) for name in plan.backends]
    torch.manual_seed(SEED)
    samples = [case.sample(torch_dtype, device) for _ in range(case.samples)]
    reasons = reasons_against(plan.backends, case.call, samples[0][0])
    found = [finding(n, NOT_RUN, "; ".join(why)) for n, why in reasons.items() if why]
    able = [name for name, why in reasons.items() if not why]
    if not able:
        return found
    with full_precision(device):
        budget = Budget.of(case.definition, samples, case.names, case.oracle)
        for backend in able:
            try:
                with nan_filled(), use_backend(backend):
                    comparisons = budget.compare(case.call)
            except Exception as error:
                found.append(finding(backend, FAILED, one_line(error)))
                continue
            worst = max(comparisons, key=lambda c: c.share)
            figures = {c.name: [c.error, c.pytorch, c.allowed] for c in comparisons}
            status = _verdict(backend, comparisons)
            found.append(finding(backend, status, str(worst), share=worst.share, errors=figures))
    return found


def _verdict(backend: str, comparisons: list[Comparison]) -> str:
    if all(c.within for c in comparisons):
        return PASSED
    wrong = any(c.fault is not None or not math.isfinite(c.error) for c in comparisons)
    return FAILED if wrong or backend in KERNELS else EXCEEDED


def check_behaviour(
    plan: Plan,
    backend: str,
    shape: LayerShape,
    dtype: str,
    name: str,
    holds: Callable[[behaviours.Step], bool],
) -> list[Finding]:
    """One behaviour of a layer."""

    def finding(status: str, detail: str = "") -> list[Finding]:
        return [Finding(BEHAVIOUR, name, _layer(shape), backend, dtype, status, detail)]

    reasons = _layer_reasons(plan, backend, shape, dtype)
    if reasons:
        return finding(NOT_RUN, "; ".join(reasons))
    torch.manual_seed(SEED)
    step = behaviours.Step(backend, shape, bench.DTYPES[dtype], plan.torch_device)
    return finding(verdict(holds(step)))


def check_memory(plan: Plan, backend: str, stage: int) -> list[Finding]:
    """What a stage's layer adds to training's peak, in the first dtype that the backend has."""
    shape = stage_shape(stage, plan.size, plan.batch)
    what, found = f"layer of stage {stage}", []
    for dtype in sorted(plan.dtypes, key=lambda name: name == "fp32"):
        reasons = _layer_reasons(plan, backend, shape, dtype)
        if reasons:
            detail = "; ".join(reasons)
            found.append(Finding(MEMORY, what, _layer(shape), backend, dtype, NOT_RUN, detail))
            continue
        m = layer_memory(backend, shape, bench.DTYPES[dtype], plan.torch_device)
        figures = {"added_bytes": m.added, "kept_bytes": m.kept, "ratio": m.ratio}
        detail = (
            f"{m.added / 1e6:.1f} MB a layer at training's peak, {m.ratio:.2f} times x, o, lse and "
            f"the tensors of M rows; allowed {LIMIT}"
        )
        status = verdict(m.within)
        return [Finding(MEMORY, what, _layer(shape), backend, dtype, status, detail, figures)]
    return found


def check_time(plan: Plan, stage: int, mode: str) -> list[Finding]:
    """A stage's layer on this package's backends, and its peers."""
    assert plan.timed is not None
    case = bench.Case(
        bench.LAYER, f"stage {stage}", plan.size, mode, plan.timed, plan.batch, plan.device
    )
    found = []
    with full_precision(plan.torch_device):
        for t in time_layer(case, plan.backends):
            status = PASSED if t.samples else FAILED if t.own else NOT_RUN
            figures = {"seconds": t.samples, "ratio": t.ratio, "own": t.own}
            subject = f"stage {stage}, {mode}"
            detail = t.reason or ""
            found.append(
                Finding(TIMING, t.contender, subject, None, plan.timed, status, detail, figures)
            )
    return found


def reasons_against(
    names: tuple[str, ...], call: Callable[..., Tensor], tensors: list[Tensor]
) -> dict[str, list[str]]:
    """By backend, why it can't run a call, as the registry says; empty if it can."""
    with use_backend(YARDSTICK):
        calls = [decision.inputs for decision in explain(call, *tensors)]
    found = {}
    for name in names:
        # forced, since some are never chosen but where somebody asks for them
        with use_backend(name):
            reasons = [reason for inputs in calls for reason in decide(inputs).reasons[name]]
        found[name] = list(dict.fromkeys(reasons))
    return found


def _layer_reasons(plan: Plan, backend: str, shape: LayerShape, dtype: str) -> list[str]:
    sizes = (shape.height, shape.width, shape.dim, shape.heads, shape.sr_ratio)
    case = layer_case(shape.batch, *sizes)
    tensors = [t.to(bench.DTYPES[dtype]) for t in case.inputs(plan.torch_device)]
    return reasons_against((backend,), case.call, tensors)[backend]


def _layer(shape: LayerShape) -> str:
    return (
        f"{shape.batch} x {shape.height} x {shape.width}, C {shape.dim}, {shape.heads} heads, "
        f"R {shape.sr_ratio}"
    )
