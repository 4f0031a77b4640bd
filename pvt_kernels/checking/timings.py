"""A short timing of PVT's layers: this package's backends, eager, SDPA and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pvt_kernels.benchmarking.cases import Case
from pvt_kernels.benchmarking.contenders import (
    COMPILED,
    NAIVE,
    PACKAGE,
    PEER_NAMES,
    PEERS,
    Contender,
    contenders,
)
from pvt_kernels.benchmarking.memory import shortage
from pvt_kernels.benchmarking.runner import one_line, timed_call
from pvt_kernels.benchmarking.timing import best_peer, cache_bytes, interleave, speedup
from pvt_kernels.benchmarking.workloads import Ring, step, workload

# of a case, and rounds that run whatever they take
SECONDS, ROUNDS = 0.5, 5
WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Of one contender.

    Attributes:
        own: whether it is this package.
        samples: seconds of each round; empty where it can't run, with the `reason`.
        ratio: how many times as fast as the best peer, for this package.
    """

    contender: str
    own: bool
    samples: list[float]
    ratio: float | None = None
    reason: str | None = None


def field_of(case: Case) -> list[Contender]:
    """All but naive attention, which would take longer than everything else together."""
    found = contenders(torch.device(case.device), case.torch_dtype)
    return [contender for contender in found if contender.kind != NAIVE]


def time_layer(case: Case, backends: tuple[str, ...] | None = None) -> list[Timing]:
    """All contenders in turn, on the same random tokens; of this package's, those `backends`."""
    device = torch.device(case.device)
    work = workload(case, real_input=False)
    ring = Ring(work.inputs, cache_bytes(device))
    field = [c for c in field_of(case) if backends is None or c.backend in (None, *backends)]
    calls: dict[str, Callable[[], float]] = {}
    reasons: dict[str, str] = {}
    torch.compiler.reset()
    for contender in field:
        # of a CPU's free memory only an extra package tells
        needed = work.needed_bytes(contender)
        lacking = shortage(needed, device) if device.type == "cuda" else None
        if lacking:
            reasons[contender.name] = lacking
            continue
        try:
            module = work.build(contender)
            with contender.context():
                for _ in range(WARM_UP):
                    step(module, work.inputs)
        except Exception as error:
            # such as a compiler that is not there
            reasons[contender.name] = one_line(error)
            continue
        calls[contender.name] = timed_call(work, module, contender, ring)
    samples, _ = interleave(calls, SECONDS, ROUNDS)
    peer = best_peer(samples, PEER_NAMES)
    timings = []
    for contender in field:
        own, mine = contender.kind == PACKAGE, samples.get(contender.name, [])
        ratio = speedup(mine, samples[peer]) if own and mine and peer else None
        reason = reasons.get(contender.name)
        timings.append(Timing(contender.name, own, mine, ratio, reason))
    return timings


def compile_peer(case: Case) -> None:
    """Run the compiled layer once, for the compiler's cache."""
    work = workload(case, real_input=False)
    compiled = next(peer for peer in PEERS if peer.kind == COMPILED)
    step(work.build(compiled), work.inputs)
