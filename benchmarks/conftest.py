"""Hands each contender's interleaved samples to its own pytest-benchmark entry.

pytest-benchmark times one function after the other, so that a machine's drift would fall on one
contender alone. Here a case is measured once, all contenders in turn, and every entry then
replays its samples: its timer is a clock that advances by the next sample at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch

from pvt_kernels.arguments import default_device
from pvt_kernels.benchmarking import environment
from pvt_kernels.benchmarking.cases import MEMORY, Case, Suite, patched_suite, suite
from pvt_kernels.benchmarking.report import outcome, print_tables, wide_console
from pvt_kernels.benchmarking.results import (
    NOT_RUN,
    OK,
    Measurement,
    Results,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.runner import field_of, run_case


class Clock:
    """A timer that shows only what was measured before."""

    def __init__(self) -> None:
        self.time = 0.0
        self.samples: Iterator[float] = iter(())

    def now(self) -> float:
        return self.time

    def advance(self) -> None:
        self.time += next(self.samples)


clock = Clock()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all sizes, dtypes and backbones")
    parser.addoption("--device", default=default_device(), choices=("cpu", "cuda"))


@cache
def _suite(quick: bool, device: str) -> Suite:
    chosen = suite(quick, device)
    return replace(chosen, cases=chosen.cases + patched_suite(quick, device).cases)


def _chosen_suite(config: pytest.Config) -> Suite:
    return _suite(not config.getoption("--full"), config.getoption("--device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of the module's KIND, with every contender."""
    if "contender" not in metafunc.fixturenames:
        return
    pairs = [
        (case, contender.name)
        for case in _chosen_suite(metafunc.config).cases
        if case.kind == metafunc.module.KIND
        for contender in field_of(case)
    ]
    ids = [f"{case}-{name}".replace(" + ", "+").replace(", ", "-") for case, name in pairs]
    metafunc.parametrize(("case", "contender"), pairs, ids=ids)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[[Case], list[Measurement]]:
    """The measurements of a case, which runs when first asked for."""
    chosen = _chosen_suite(request.config)
    known: dict[Case, list[Measurement]] = request.config.stash.setdefault(_MEASURED, {})

    def measure(case: Case) -> list[Measurement]:
        if case not in known:
            known[case] = run_case(case, chosen)
        return known[case]

    return measure


@pytest.fixture
def replay(benchmark, measured) -> Callable[[Case, str], Measurement]:
    """Record a contender's samples as the benchmark; skip or fail where there are none."""

    def record(case: Case, contender: str) -> Measurement:
        group = measured(case)
        measurement = next(m for m in group if m.contender == contender)
        if measurement.status == NOT_RUN:
            pytest.skip(f"{contender}, {outcome(measurement)}")
        if measurement.status != OK:
            pytest.fail(f"{contender}, {outcome(measurement)}")
        benchmark.group = str(case)
        benchmark.extra_info.update(peak_bytes=measurement.peak_bytes, errors=measurement.errors)
        # a single call in a fresh process says nothing of speed
        if case.kind != MEMORY:
            benchmark.extra_info.update(
                images_per_second=measurement.throughput,
                gflops=measurement.gflops,
                times_as_fast_as_best_peer=ratio_to_best_peer(measurement, group),
            )
        clock.samples = iter(measurement.samples)
        benchmark.pedantic(
            clock.advance, rounds=len(measurement.samples), iterations=1, warmup_rounds=0
        )
        return measurement

    return record


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """The tables with memory, errors and ratios, which pytest-benchmark's can't show."""
    known = config.stash.get(_MEASURED, {})
    if known:
        device = torch.device(config.getoption("--device"))
        measurements = [m for group in known.values() for m in group]
        terminalreporter.write_line("")
        print_tables(Results(environment.collect(device), measurements), wide_console())


_MEASURED = pytest.StashKey[dict[Case, list[Measurement]]]()
