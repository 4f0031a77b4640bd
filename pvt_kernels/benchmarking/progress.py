"""What a long run shows: the case at hand, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn
from rich.table import Column

from pvt_kernels.benchmarking.cases import (
    CORE,
    FEED_FORWARD,
    LAYER,
    MEMORY,
    SCALE,
    Case,
    Suite,
    rough_flops,
)
from pvt_kernels.benchmarking.results import Measurement, Results
from pvt_kernels.benchmarking.runner import Progress as Told

# A first guess, which each case that ends corrects.
# calls of a round, and before the rounds, as multiples of one at the rate of matrix products
CALLS_A_ROUND, CALLS_BEFORE = 6, 15
# to compile a layer and its backward, and a model, more than once; to measure in a fresh process
COMPILE_S, MODEL_COMPILE_S, PROCESSES_S = 5.0, 60.0, 4.0

# (case, what was measured before it, whom to tell what is running)
Run = Callable[[Case, list[Measurement], Told], list[Measurement]]


def expected_seconds(case: Case, suite: Suite, gflops: float) -> float:
    """How long a case will take, roughly.

    Args:
        gflops: 1e9 operations a second of the machine's matrix products.
    """
    if case.kind == MEMORY:
        return PROCESSES_S
    if case.kind in (CORE, LAYER, FEED_FORWARD):
        compiling = 0.0 if suite.quick and case.backward else COMPILE_S * (1 + case.backward)
    else:
        compiling = 0.0 if suite.quick or case.kind == SCALE else MODEL_COMPILE_S
    rounds = suite.rounds if case.kind in (CORE, LAYER, FEED_FORWARD) else suite.backbone_rounds
    call = rough_flops(case) / gflops / 1e9
    timing = max(suite.seconds, rounds * CALLS_A_ROUND * call)
    return CALLS_BEFORE * call + timing + compiling + PROCESSES_S * (case.kind != CORE)


class Forecast:
    """The time to the end of a run, by the cases' expected times and by how true they were."""

    def __init__(self, expected: Sequence[float]) -> None:
        self.expected = list(expected)
        self.done = 0
        self.begin = self.last = time.monotonic()

    def advance(self) -> None:
        """A case has ended."""
        self.done += 1
        self.last = time.monotonic()

    def left(self) -> float:
        """Seconds to the end."""
        ended = sum(self.expected[: self.done])
        pace = (self.last - self.begin) / ended if ended else 1.0
        rest = pace * sum(self.expected[self.done :])
        return max(0.0, rest - (time.monotonic() - self.last))

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.left()), 60)
        return f"about {minutes}:{seconds:02d} left"


class _LeftColumn(TextColumn):
    def __init__(self, forecast: Forecast) -> None:
        super().__init__("", markup=False, table_column=Column(no_wrap=True))
        self.forecast = forecast

    def render(self, task: Task):
        self.text_format = str(self.forecast)
        return super().render(task)


def run_cases(
    cases: Sequence[Case],
    run: Run,
    forecast: Forecast,
    results: Results,
    console: Console,
    save: Callable[[], None],
) -> None:
    """Run every case, adding to `results`, and call `save` after each.

    A terminal shows a bar, and what is running; elsewhere each case is a line.
    """
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        _LeftColumn(forecast),
    )
    progress = Progress(*columns, console=console, transient=True, expand=True)
    with progress if console.is_terminal else nullcontext():
        task = progress.add_task("starting", total=len(cases))
        for number, case in enumerate(cases, start=1):
            if not console.is_terminal:
                console.print(f"[{number}/{len(cases)}, {forecast}] {case}", markup=False)
            results.measurements += run(case, results.measurements, _teller(progress, task))
            save()
            forecast.advance()
            progress.advance(task)


def _teller(progress: Progress, task: TaskID) -> Told:
    return lambda text: progress.update(task, description=text)
