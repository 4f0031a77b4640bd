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
from pvt_kernels.benchmarking.contenders import PACKAGE, Contender
from pvt_kernels.benchmarking.progress import Forecast, expected_seconds
from pvt_kernels.benchmarking.report import outcome, print_tables
from pvt_kernels.benchmarking.results import (
    FAILED,
    OK,
    Measurement,
    Results,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.runner import field_of, run_case
from pvt_kernels.benchmarking.table import wide_console
from pvt_kernels.benchmarking.timing import rates


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
        (case, contender)
        for case in _chosen_suite(metafunc.config).cases
        if case.kind == metafunc.module.KIND
        for contender in field_of(case)
    ]
    ids = [f"{case}-{c.name}".replace(" + ", "+").replace(", ", "-") for case, c in pairs]
    metafunc.parametrize(("case", "contender"), pairs, ids=ids)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[[Case], list[Measurement]]:
    """The measurements of a case, which runs when first asked for, and a line tells so."""
    config = request.config
    chosen, device = _chosen_suite(config), torch.device(config.getoption("--device"))
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    given = [item.callspec.params["case"] for item in request.session.items]
    # a kind of which there is none here leaves an empty set of parameters
    cases = list(dict.fromkeys(case for case in given if isinstance(case, Case)))
    measured_rates = rates(dict.fromkeys(case.dtype for case in cases), device)
    matmul = measured_rates["matmul_gflops"]
    forecast = Forecast([expected_seconds(case, chosen, matmul[case.dtype]) for case in cases])
    command = f"pytest {' '.join(config.invocation_params.args)}"
    facts = environment.collect(device, command, len(cases))
    results = Results({**facts, **measured_rates}, [])
    config.stash[_RESULTS] = results
    known: dict[Case, list[Measurement]] = {}

    def measure(case: Case) -> list[Measurement]:
        if case not in known:
            # pytest captures what is printed within a test
            with capture.global_and_fixture_disabled():
                reporter.write_line(f"[{len(known) + 1}/{len(cases)}, {forecast}] {case}")
            known[case] = run_case(case, chosen)
            results.measurements += known[case]
            forecast.advance()
        return known[case]

    return measure


@pytest.fixture
def replay(benchmark, measured) -> Callable[[Case, Contender], Measurement]:
    """Record a contender's samples as the benchmark.

    Skips what was not run, and a peer that can't run here. Fails where this package can't, or errs
    by more than it may: peers that do are timed and marked.
    """

    def record(case: Case, contender: Contender) -> Measurement:
        group = measured(case)
        measurement = next(m for m in group if m.contender == contender.name)
        own = contender.kind == PACKAGE
        if own and measurement.status == FAILED:
            pytest.fail(f"{contender.name}, {outcome(measurement)}")
        if measurement.status != OK:
            pytest.skip(f"{contender.name}, {outcome(measurement)}")
        if own and measurement.mark:
            pytest.fail(f"{contender.name}: {measurement.over_budget}")
        benchmark.group = str(case)
        benchmark.extra_info.update(
            peak_bytes=measurement.peak_bytes,
            errors=measurement.errors,
            above_budget=measurement.over_budget,
        )
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
    results = config.stash.get(_RESULTS, None)
    if results and results.measurements:
        terminalreporter.write_line("")
        print_tables(results, wide_console())


_RESULTS = pytest.StashKey[Results]()
