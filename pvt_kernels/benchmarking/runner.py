"""Runs cases: check, time, measure memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from pvt_kernels.benchmarking import memory
from pvt_kernels.benchmarking.accuracy import (
    package_budgets,
    peer_budgets,
    relative_error,
    rounded,
)
from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    CORE,
    FEED_FORWARD,
    LAYER,
    MEMORY,
    PATCHED,
    Case,
    Suite,
    rough_flops,
)
from pvt_kernels.benchmarking.contenders import (
    COMPILED,
    EAGER,
    NAIVE,
    PACKAGE,
    Contender,
    contenders,
    feed_forward_contenders,
)
from pvt_kernels.benchmarking.live_models import LIVE_MODELS
from pvt_kernels.benchmarking.needs import TRAINING_MEMORY, largest_side
from pvt_kernels.benchmarking.results import FAILED, NOT_RUN, Measurement
from pvt_kernels.benchmarking.shapes import feed_forward_shape
from pvt_kernels.benchmarking.timing import (
    LONGEST_S,
    ROUNDS_FAR_BEHIND,
    cache_bytes,
    interleave,
    matmul_gflops,
    seconds,
)
from pvt_kernels.benchmarking.workloads import (
    SEED,
    BackboneWorkload,
    Inputs,
    Ring,
    Workload,
    step,
    workload,
)

# Quick mode leaves out naive attention beyond this: it would take half a minute in all.
QUICK_NAIVE_FLOPS = 5e10

Progress = Callable[[str], None]


def field_of(case: Case) -> list[Contender]:
    """All contenders of a case."""
    if case.kind == PATCHED:
        return LIVE_MODELS[case.subject].contenders(case.size)
    device = torch.device(case.device)
    if case.kind == FEED_FORWARD:
        shape = feed_forward_shape(case.stage, case.convolved, case.size, case.batch)
        return feed_forward_contenders(shape, device, case.torch_dtype, case.backward)
    return _taking_part(case, contenders(device, case.torch_dtype))


def _taking_part(case: Case, field: list[Contender]) -> list[Contender]:
    # of the attention alone the naive form is the layer's, and compiling it gives SDPA
    return [c for c in field if c.kind not in (NAIVE, COMPILED) or case.kind != CORE]


def left_out(case: Case, contender: Contender, flops: int | None) -> bool:
    """Whether quick mode leaves a contender out of a case, to end within two minutes."""
    if contender.kind == NAIVE and case.device == "cuda":
        return False
    if contender.kind == COMPILED:
        # compiling a layer's backward takes several seconds
        return case.kind != LAYER or case.backward
    if contender.backend is not None:
        return case.kind != LAYER or case.backward
    return contender.kind == NAIVE and (flops is None or flops > QUICK_NAIVE_FLOPS)


def too_slow(case: Case, flops: int | None) -> str | None:
    """Why a peer is not to run where PyTorch's products take far too long; None if they don't.

    As those of bf16 do on a CPU without instructions for it.
    """
    gflops = matmul_gflops(case.torch_dtype, torch.device(case.device))
    needed = (flops or rough_flops(case)) / gflops / 1e9
    if ROUNDS_FAR_BEHIND * needed <= LONGEST_S:
        return None
    return (
        f"a call would take about {needed:.0f} s by PyTorch's matrix product, {gflops:.1g} "
        f"GFLOP/s in {case.dtype}"
    )


def run_case(
    case: Case,
    suite: Suite,
    progress: Progress = lambda _: None,
    field: list[Contender] | None = None,
) -> list[Measurement]:
    """Measure all contenders of a case.

    Args:
        case: what to compare.
        suite: how long to spend on it.
        progress: told what is running.
        field: the contenders; all that there are for the case if None.
    """
    device = torch.device(case.device)
    field = field_of(case) if field is None else _taking_part(case, field)
    with full_precision(device):
        work = workload(case, real_input=case.kind != MEMORY)
        measurements = {
            c.name: Measurement(case, c.name, flops=work.flops(c), note=c.note) for c in field
        }
        runnable = []
        for contender in field:
            measurement = measurements[contender.name]
            if case.backward and isinstance(work, BackboneWorkload):
                growth = partial(work.growth, contender)
                measurement.largest_side = largest_side(growth, TRAINING_MEMORY)
            lacking = memory.shortage(work.needed_bytes(contender), device)
            slow = "" if contender.kind == PACKAGE else too_slow(case, measurement.flops)
            if lacking or slow:
                measurement.end(NOT_RUN, lacking or slow)
            elif suite.quick and left_out(case, contender, measurement.flops):
                measurement.end(NOT_RUN, "not in quick mode")
            else:
                runnable.append(contender)
        if case.kind != MEMORY:
            runnable = _check_and_time(case, suite, work, runnable, measurements, progress)
        del work
        _release(device)
        for contender in runnable if case.kind != CORE else ():
            if suite.quick and contender.kind == COMPILED:
                # the fresh process would compile once more
                measurements[contender.name].note = "memory: not in quick mode"
                continue
            progress(f"{case}: memory of {contender.name}")
            _measure_memory(measurements[contender.name], contender)
    return list(measurements.values())


def _check_and_time(
    case: Case,
    suite: Suite,
    work: Workload,
    field: list[Contender],
    measurements: dict[str, Measurement],
    progress: Progress,
) -> list[Contender]:
    """Compare with the oracle and time; returns those that were timed."""
    # all layers share their code, and each case's shapes count against the compiler's limit
    torch.compiler.reset()
    modules: dict[str, nn.Module] = {}
    oracles: dict[str, tuple[dict[str, torch.Tensor], dict[str, float]]] = {}
    eager_errors = None
    # eager first: this package is judged by its errors
    for contender in sorted(field, key=lambda c: c.kind != EAGER):
        progress(f"{case}: checking {contender.name}")
        measurement = measurements[contender.name]
        try:
            with contender.context():
                module = work.build(contender)
                inputs, note = work.check_inputs(contender)
                measurement.note = note or measurement.note
                actual = work.results(module, inputs)
        except Exception as error:
            measurement.end(FAILED, one_line(error))
            continue
        modules[contender.name] = module
        group = NAIVE if contender.kind == NAIVE else EAGER
        if group not in oracles:
            oracles[group] = _exact(work, contender, inputs)
        exact, rounding = oracles[group]
        measurement.errors = _errors(actual, exact)
        if contender.kind == PACKAGE:
            budgets = package_budgets(rounding, case.torch_dtype, eager_errors)
        else:
            budgets = peer_budgets(rounding, case.torch_dtype)
        measurement.budgets = budgets
        if contender.kind == EAGER:
            eager_errors = measurement.errors
    oracles.clear()

    progress(f"{case}: timing")
    device = torch.device(case.device)
    rounds = suite.backbone_rounds if case.kind in (BACKBONE, PATCHED) else suite.rounds
    timed = [contender for contender in field if contender.name in modules]
    ring = Ring(work.inputs, cache_bytes(device))
    for contender in timed:
        # what was checked had another size, or other activations
        if contender.kind == COMPILED and case.kind in (BACKBONE, PATCHED):
            timed_call(work, modules[contender.name], contender, ring)()
    samples, given_up = interleave(
        {c.name: timed_call(work, modules[c.name], c, ring) for c in timed},
        suite.seconds,
        rounds,
        optional=[contender.name for contender in timed if contender.kind == NAIVE],
        rounds_far_behind=1 if suite.quick else ROUNDS_FAR_BEHIND,
    )
    for name, needed in given_up.items():
        measurements[name].end(NOT_RUN, f"would take {needed:.0f} s for {rounds} rounds")
    for contender in timed:
        measurements[contender.name].samples = samples[contender.name]
    return [contender for contender in timed if contender.name not in given_up]


def _exact(
    work: Workload, contender: Contender, inputs: Inputs
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What the oracle gives, and how far that moves when all its inputs are rounded once."""
    oracle, dtype = work.build_oracle(contender, inputs.rows), inputs.x.dtype
    exact = work.results(oracle, inputs.exact())
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.copy_(rounded(parameter, dtype, generator))
    moved = work.results(oracle, inputs.exact(lambda t: rounded(t, dtype, generator)))
    return exact, _errors(moved, exact)


def _errors(actual: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: relative_error(actual[name], tensor) for name, tensor in exact.items()}


def timed_call(
    work: Workload, module: nn.Module, contender: Contender, ring: Ring
) -> Callable[[], float]:
    """A function that runs a contender once, on the next inputs of the ring, and times that."""

    def measure() -> float:
        work.clear(module)
        inputs = ring.next()
        with contender.context():
            return seconds(lambda: step(module, inputs), inputs.x.device)

    return measure


def _measure_memory(measurement: Measurement, contender: Contender) -> None:
    try:
        peak = memory.peak(measurement.case, contender)
    except RuntimeError as error:
        if measurement.case.kind == MEMORY:
            measurement.end(FAILED, one_line(error))
        else:
            measurement.note = f"memory not measured: {one_line(error)}"
        return
    measurement.peak_bytes = peak.bytes
    if measurement.case.kind == MEMORY:
        measurement.samples = [peak.seconds]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """fp32 means fp32: cuDNN would take TF32 for the convolution."""
    tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with tf32 if device.type == "cuda" else nullcontext():
        yield


def _release(device: torch.device) -> None:
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def one_line(error: Exception) -> str:
    """The exception's type, if its text does not begin with one, and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
