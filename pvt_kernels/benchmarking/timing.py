"""Interleaved timing: machines drift, so every round runs every contender."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from pvt_kernels._C import cpu
from pvt_kernels.benchmarking.cases import DTYPES

# What a contender that may be left out may take for all its rounds, in seconds.
LONGEST_S = 20.0
# more samples of a fast contender would tell nothing new
MOST_ROUNDS = 300
# nor would they where the middle half of everyone's lies within this share of the median
SMALL_SPREAD, ROUNDS_OF_SPREAD = 0.02, 5
# a contender so many times slower than the fastest is out of the race, and has fewer rounds
FAR_BEHIND, ROUNDS_FAR_BEHIND = 5.0, 3
SMALL_MATMUL_SIZE, MATMUL_SIZE, MATMUL_ROUNDS = 256, 2048, 5
# that no GPU's L2 is larger than; for a PyTorch that doesn't say
LARGE_CACHE = 128 * 2**20


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes: on a GPU between two events, with nothing before it under way.

    The GPU's clock then counts what it waits for the host's launches too, as in eager mode.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def cache_bytes(device: torch.device) -> int:
    """Of a GPU's L2 cache; 0 for a CPU, whose calls are timed on one set of buffers."""
    if device.type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", LARGE_CACHE)


def rotated(names: Sequence[str], round_index: int) -> list[str]:
    """The order of a round: each round starts with the next contender."""
    start = round_index % len(names) if names else 0
    return [*names[start:], *names[:start]]


def interleave(
    measures: dict[str, Callable[[], float]],
    budget_s: float,
    minimum_rounds: int,
    optional: Sequence[str] = (),
    rounds_far_behind: int = ROUNDS_FAR_BEHIND,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Run every measure once a round until the budget is spent, at least `minimum_rounds` times.

    It ends before the budget where the spreads of all are small. Who is FAR_BEHIND after
    `rounds_far_behind` rounds has no more of them.

    Args:
        measures: for each contender a function that runs it once and returns its seconds; each
            has run before, as a warm-up.
        budget_s: seconds for all rounds together, of which there are at most MOST_ROUNDS.
        minimum_rounds: rounds that run whatever the budget is.
        optional: contenders that are given up after a first run by which all rounds of it would
            take longer than LONGEST_S.
        rounds_far_behind: rounds that everyone has.

    Returns:
        Each contender's samples: the i-th are of the same round. And of those given up, which have
        none, how many seconds their rounds would take.
    """
    samples: dict[str, list[float]] = {name: [] for name in measures}
    given_up: dict[str, float] = {}
    active = list(measures)
    begin, index = time.perf_counter(), 0

    def goes_on() -> bool:
        if index < minimum_rounds:
            return True
        if index == MOST_ROUNDS or time.perf_counter() - begin >= budget_s:
            return False
        return not all(_settled(samples[name]) for name in active)

    while active and goes_on():
        for name in rotated(active, index):
            samples[name].append(measures[name]())
        if index == 0:
            expected = {name: minimum_rounds * samples[name][0] for name in optional}
            given_up = {name: s for name, s in expected.items() if s > LONGEST_S}
            samples |= {name: [] for name in given_up}
            active = [name for name in active if name not in given_up]
        index += 1
        if index == rounds_far_behind:
            active = [name for name in active if not far_behind(name, samples)]
    return samples, given_up


def far_behind(name: str, samples: dict[str, list[float]]) -> bool:
    """Whether a contender is FAR_BEHIND the fastest of all, by the first ROUNDS_FAR_BEHIND."""
    medians = {
        timed: statistics.median(of_one[:ROUNDS_FAR_BEHIND])
        for timed, of_one in samples.items()
        if of_one
    }
    return medians[name] > FAR_BEHIND * min(medians.values())


def _settled(samples: Sequence[float]) -> bool:
    low, median, high = quartiles(samples)
    if len(samples) < ROUNDS_OF_SPREAD:
        return False
    return high - low <= SMALL_SPREAD * median


def rates(dtypes: Iterable[str], device: torch.device) -> dict[str, dict[str, float]]:
    """What the machine reaches, in 1e9 operations a second, by `cases.DTYPES`' names.

    Returns:
        `matmul_gflops`, of PyTorch's matrix product, and for a CPU `peak_gflops`, of the
        multiply-adds that this package's kernels are made of, on as many threads.
    """
    found = {"matmul_gflops": {name: matmul_gflops(DTYPES[name], device) for name in dtypes}}
    if device.type == "cpu":
        threads = torch.get_num_threads()
        found["peak_gflops"] = {
            name: cpu.peak_rate(str(DTYPES[name]).removeprefix("torch."), threads) / 1e9
            for name in dtypes
        }
    return found


@functools.cache
def matmul_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """1e9 operations a second of PyTorch's product of two square matrices, measured once.

    Large ones, if that takes no longer than LONGEST_S.
    """

    def samples(size: int) -> list[float]:
        a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
        return [seconds(lambda: a @ b, device) for _ in range(2 + MATMUL_ROUNDS)][2:]

    rate = 2 * SMALL_MATMUL_SIZE**3 / min(samples(SMALL_MATMUL_SIZE))
    if (2 + MATMUL_ROUNDS) * 2 * MATMUL_SIZE**3 / rate <= LONGEST_S:
        rate = 2 * MATMUL_SIZE**3 / statistics.median(samples(MATMUL_SIZE))
    return rate / 1e9


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(samples) == 1:
        return (samples[0],) * 3
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high


def best_peer(samples: dict[str, list[float]], peers: Sequence[str]) -> str | None:
    """The peer with the lowest median, if any was timed."""
    timed = [name for name in peers if samples.get(name)]
    return min(timed, key=lambda name: statistics.median(samples[name]), default=None)


def speedup(own: Sequence[float], peer: Sequence[float]) -> float:
    """How many times as fast as the peer: the peer's median by the own.

    The one statistic of the benchmark, so that a ratio follows from the times beside it.
    """
    return statistics.median(peer) / statistics.median(own)
