"""Times and memory of the attention alone, of layers and of whole models, beside their peers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvt_kernels.benchmarking import memory
from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    CORE,
    FORWARD,
    LAYER,
    PATCHED,
    TRAINING,
    Case,
)
from pvt_kernels.benchmarking.contenders import (
    COMPILED,
    NAIVE,
    NAIVE_MHA,
    PACKAGE,
    SDPA,
    Contender,
)
from pvt_kernels.benchmarking.runner import field_of
from pvt_kernels.benchmarking.workloads import Workload, step, workload
from steps.device import (
    BATCH,
    CUDA,
    DEVICE,
    KINDS,
    SIZE,
    Part,
    guarded,
    release,
    run_parts,
    synchronize,
)
from steps.record import record, seconds_left
from steps.timers import WARM_UP, eager_ms, graph_ms, own_stream, replay_of

MODES = (FORWARD, TRAINING)
# a queue of launches is finite: with more calls the host would wait for the device
CALLS, ROUNDS = (15, 5) if CUDA else (1, 1)
MODEL_CALLS = 5 if CUDA else 1
MODELS = ("pvt_small", "pvt_v2_b2") if CUDA else ("pvt_tiny",)
LIVE = ("segformer_b2", (1024, 1024)) if CUDA else ("segformer_b0", (64, 64))


@dataclass(frozen=True)
class Entry:
    """A contender, and what else is done to it.

    Attributes:
        kind: of PyTorch's fused attention that is forced.
        mode: of torch.compile, for a layer that the contender does not compile itself.
    """

    contender: Contender
    kind: SDPBackend | None = None
    mode: str | None = None

    @property
    def own(self) -> bool:
        return self.contender.kind == PACKAGE

    def call(self, work: Workload) -> Callable[[], object]:
        """A step of the work, with no gradients left of the one before."""
        module = work.build(self.contender)
        run = module
        if self.mode is not None:
            run = torch.compile(module, dynamic=False, mode=self.mode)

        def call() -> object:
            work.clear(module)
            with ExitStack() as stack:
                stack.enter_context(self.contender.context())
                stack.enter_context(nullcontext() if self.kind is None else sdpa_kernel(self.kind))
                return step(run, work.inputs)

        return call


def field(case: Case) -> dict[str, Entry]:
    """All that there are for a case, but naive attention."""
    found = {c.name: Entry(c) for c in field_of(case) if c.kind != NAIVE}
    if case.kind in (CORE, LAYER):
        for name, kind in KINDS.items() if CUDA else ():
            found[f"SDPA {name}"] = Entry(Contender(f"SDPA {name}", SDPA), kind)
    if case.kind == LAYER:
        for mode in ("default", "reduce-overhead"):
            name = f"compiled SDPA, {mode}"
            found[name] = Entry(Contender(name, SDPA), mode=mode)
    if case.kind == BACKBONE:
        # every layer would be compiled by itself
        found = {n: e for n, e in found.items() if e.contender.kind != COMPILED}
        if not CUDA:
            # a whole model in the interpreter would take minutes
            found.pop("pvt_kernels[triton]", None)
    return found


def case_of(kind: str, subject: str, mode: str, dtype: str = "bf16", batch: int = BATCH) -> Case:
    size = LIVE[1] if kind == PATCHED else SIZE
    return Case(kind, subject, size, mode, dtype, batch, DEVICE.type)


def compare(case: Case) -> None:
    """All contenders of a case, in turn: the attention alone in graphs, the rest in eager too."""
    # else the compiler gives up after some shapes
    torch.compiler.reset()
    work = workload(case, real_input=False)
    calls, replays, peaks = {}, {}, {}
    with own_stream():
        for name, entry in field(case).items():
            if seconds_left() < 5:
                record("dropped", first=f"{case}, {name}", parts=1)
                continue
            with guarded(part=str(case), contender=name):
                call = entry.call(work)
                for _ in range(WARM_UP):
                    call()
                synchronize()
                peaks[name] = peak_mb(call)
                calls[name] = call
            # reduce-overhead has graphs of its own
            if name in calls and entry.mode != "reduce-overhead":
                with guarded(part=f"graph of {case}", contender=name):
                    replays[name] = replay_of(call)
        graphs = graph_ms(replays)
        walls, hosts = {}, {}
        if case.kind != CORE:
            walls, hosts = eager_ms(calls, CALLS, ROUNDS)
    for name in calls:
        write(case, name, peaks[name], graphs.get(name), walls.get(name), hosts.get(name))
    del calls, replays
    release()


def compare_models(case: Case) -> None:
    """One contender after the other: the graphs of several models would not fit side by side."""
    work = workload(case, real_input=False)
    for name, entry in field(case).items():
        if seconds_left() < 8:
            record("dropped", first=f"{case}, {name}", parts=1)
            continue
        with guarded(part=str(case), contender=name), own_stream():
            call = entry.call(work)
            for _ in range(WARM_UP):
                call()
            synchronize()
            peak = peak_mb(call)
            walls, hosts = eager_ms({name: call}, MODEL_CALLS, ROUNDS)
            graph = None
            with guarded(part=f"graph of {case}", contender=name):
                graph = graph_ms({name: replay_of(call)})[name]
            write(case, name, peak, graph, walls[name], hosts[name])
            del call
        release()


def naive(case: Case) -> None:
    """Every token to every token, where that fits: its time and its memory."""
    work = workload(case, real_input=False)
    lacking = memory.shortage(work.needed_bytes(NAIVE_MHA), DEVICE)
    if lacking:
        record("left out", part=f"naive MHA, {case}", reason=lacking)
        return
    call = Entry(NAIVE_MHA).call(work)
    call()
    peak = peak_mb(call)
    walls, hosts = eager_ms({NAIVE_MHA.name: call}, 1, ROUNDS)
    write(case, NAIVE_MHA.name, peak, None, walls[NAIVE_MHA.name], hosts[NAIVE_MHA.name])
    release()


def peak_mb(call: Callable[[], object]) -> float | None:
    """By the GPU's caching allocator, beyond what was there; None on the CPU."""
    return round(memory.growth(call, DEVICE).bytes / 1e6, 1) if CUDA else None


def write(
    case: Case,
    name: str,
    peak: float | None,
    graph: float | None,
    wall: float | None,
    host: float | None,
) -> None:
    own = name.startswith("pvt_kernels") or name == "patched"
    record("time", part=case.kind, subject=case.subject, mode=case.mode, dtype=case.dtype,
           batch=case.batch, contender=name, own=own, peer=not own and name != NAIVE_MHA.name,
           graph_ms=graph, wall_ms=wall, host_ms=host, peak_mb=peak)  # fmt: skip


def parts_of(step_name: str) -> list[Part]:
    """What a step does, the most important first."""
    stages = [f"stage {stage}" for stage in (1, 2, 3, 4)]
    cases: list[tuple[Callable[[Case], None], Case]] = []
    if step_name == "core":
        settings = (
            (("bf16", BATCH), ("fp16", BATCH), ("bf16", 4 * BATCH)) if CUDA else (("bf16", 1),)
        )
        cases = [
            (compare, case_of(CORE, stage, mode, dtype, batch))
            for dtype, batch in settings
            for stage in stages
            for mode in MODES
        ]
    elif step_name == "layer":
        cases = [(compare, case_of(LAYER, stage, mode)) for mode in MODES[::-1] for stage in stages]
        cases += [(naive, case_of(LAYER, "stage 1", mode, batch=1)) for mode in MODES]
    else:
        cases = [(compare_models, case_of(BACKBONE, m, mode)) for m in MODELS for mode in MODES]
        cases += [(compare_models, case_of(PATCHED, LIVE[0], mode)) for mode in MODES]
    return [(f"{case}, batch {case.batch}", partial(run, case)) for run, case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("core", "layer", "models"))
    parser.add_argument("--first", type=int, help="only so many parts")
    options = parser.parse_args()
    run_parts(parts_of(options.step)[: options.first])


if __name__ == "__main__":
    main()
