"""How long a run is said to take, and what is shown where there is no terminal."""

import io

import pytest
from rich.console import Console

from pvt_kernels.benchmarking import progress
from pvt_kernels.benchmarking.cases import LAYER, Case, suite
from pvt_kernels.benchmarking.progress import Forecast, expected_seconds, run_cases
from pvt_kernels.benchmarking.results import Measurement, Results


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as the test says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_the_expected_one_at_first_and_then_as_it_goes(clock):
    forecast = Forecast([10.0, 20.0, 30.0])
    assert forecast.left() == 60
    clock[0] += 15
    assert forecast.left() == 45
    clock[0] += 5
    # twice as slow as expected
    forecast.advance()
    assert forecast.left() == 100
    assert str(forecast) == "about 1:40 left"
    clock[0] += 500
    assert forecast.left() == 0
    forecast.advance()
    forecast.advance()
    assert forecast.left() == 0


@pytest.mark.parametrize("quick", [True, False])
def test_every_case_is_expected_to_take_time_and_large_ones_more(quick):
    chosen = suite(quick, "cpu")
    expected = [expected_seconds(case, chosen, 200.0) for case in chosen.cases]
    assert min(expected) > 0
    first, last = (
        Case(LAYER, f"stage {s}", (800, 1216), "forward", "fp32", 1, "cpu") for s in (1, 4)
    )
    assert expected_seconds(first, chosen, 200.0) > expected_seconds(last, chosen, 200.0)
    if quick:
        assert 60 < sum(expected) < 180


def test_without_a_terminal_each_case_is_a_line_and_results_are_saved():
    cases = [Case(LAYER, f"stage {s}", (64, 64), "forward", "fp32", 1, "cpu") for s in (1, 2)]
    results, saved = Results({"cases": 2}, []), []

    def run(case, before, told):
        told("checking")
        assert len(before) == len(saved)
        return [Measurement(case, "someone")]

    console = Console(file=io.StringIO(), width=100)
    save = lambda: saved.append(len(results.measurements))  # noqa: E731
    run_cases(cases, run, Forecast([30.0, 30.0]), results, console, save)
    assert saved == [1, 2] and results.complete
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "[1/2, about 1:00 left] stage 1, 64x64, forward, fp32"
    assert lines[1].startswith("[2/2, about 0:0") and len(lines) == 2


def test_a_terminal_shows_what_is_running():
    case = Case(LAYER, "stage 1", (64, 64), "forward", "fp32", 1, "cpu")

    def run(case, before, told):
        told(f"{case}: timing")
        return [Measurement(case, "someone")]

    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    run_cases([case], run, Forecast([90.0]), Results({}, []), console, lambda: None)
    shown = console.file.getvalue()
    assert "about 1:30 left" in shown and "0/1" in shown
