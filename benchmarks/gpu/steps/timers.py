"""Milliseconds: of a CUDA graph's replays, of eager calls, and of the host alone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from pvt_kernels.benchmarking.timing import rotated, seconds
from steps.device import CUDA, DEVICE, synchronize

Call = Callable[[], object]
ROUNDS = 30 if CUDA else 1
# a graph holds as many calls as take this long, so that its launch weighs little
GRAPH_MS, MOST_CALLS = 0.3, 20
WARM_UP = 3 if CUDA else 1


@dataclass(frozen=True)
class Replay:
    """A call of `call` does `times` times what is timed."""

    call: Call
    times: int


def own_stream() -> AbstractContextManager[object]:
    """A stream that a graph may capture; what came before is done."""
    synchronize()
    return torch.cuda.stream(torch.cuda.Stream()) if CUDA else nullcontext()


def replay_of(call: Call) -> Replay:
    """A CUDA graph of a call that runs on the current stream: within `own_stream`."""
    for _ in range(WARM_UP):
        call()
    synchronize()
    once = _graph_of(call, 1)
    estimate = 1e3 * min(seconds(once, DEVICE) for _ in range(WARM_UP))
    times = max(1, min(MOST_CALLS, math.ceil(GRAPH_MS / estimate))) if CUDA else 1
    return Replay(once if times == 1 else _graph_of(call, times), times)


def graph_ms(replays: dict[str, Replay]) -> dict[str, float]:
    """Medians of replays in turn; the host stays ahead of the GPU, which never waits for it."""
    samples: dict[str, list[float]] = {name: [] for name in replays}
    orders = [rotated(list(replays), index) for index in range(ROUNDS)]
    if not CUDA:
        for name in (name for order in orders for name in order):
            samples[name].append(1e3 * seconds(replays[name].call, DEVICE))
        return _medians(samples)
    events = []
    synchronize()
    torch.cuda._sleep(2_000_000)
    for name in (name for order in orders for name in order):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replays[name].call()
        end.record()
        events.append((name, start, end))
    synchronize()
    for name, start, end in events:
        samples[name].append(start.elapsed_time(end) / replays[name].times)
    return _medians(samples)


def eager_ms(calls: dict[str, Call], count: int, rounds: int) -> tuple[dict[str, float], ...]:
    """Of `count` calls in a row, in turn: with the wait for the device, and until enqueued."""
    walls: dict[str, list[float]] = {name: [] for name in calls}
    hosts: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in rotated(list(calls), index):
            synchronize()
            begin = time.perf_counter()
            for _ in range(count):
                calls[name]()
            enqueued = time.perf_counter()
            synchronize()
            hosts[name].append(1e3 * (enqueued - begin) / count)
            walls[name].append(1e3 * (time.perf_counter() - begin) / count)
    return _medians(walls), _medians(hosts)


def _graph_of(call: Call, times: int) -> Call:
    def calls() -> None:
        for _ in range(times):
            call()

    if not CUDA:
        return calls
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        calls()
    return graph.replay


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 5) for name, values in samples.items()}
