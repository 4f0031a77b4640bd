"""How a run is doing: a bar or lines on the console, and TensorBoard's logs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

# of the newest steps' time in the estimate of the time left
_NEWEST = 0.1


def _outlast_older_logs(folder: Path) -> None:
    """Wait for a second in which no log of the folder was begun.

    TensorBoard reads them in the order of their names, `events.out.tfevents.SECOND.HOST.PROCESS`:
    of two of the same second a killed run's might come after that of the run that goes on from it.
    """
    begun = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    # a clock that was set back is not waited for
    while begun and 0 <= max(begun) + 1 - time.time() <= 1:
        time.sleep(0.01)


class Reporter:
    """Shows a run's progress from `start` on, in the process that prints; use it as a context.

    On a terminal a bar, elsewhere a line every time something is logged.
    """

    def __init__(self, console: Console, folder: Path, start: int, total: int) -> None:
        self.console = console
        self.total = total
        # what a killed run logged after its checkpoint is logged again
        _outlast_older_logs(folder)
        self.writer = SummaryWriter(str(folder), purge_step=start + 1)
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            "left:",
            TimeRemainingColumn(),
        )
        columns = [TextColumn(c, markup=False) if isinstance(c, str) else c for c in columns]
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("starting", total=total, completed=start)
        self.last = (start, time.monotonic())
        self.step_seconds: float | None = None

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.writer.close()

    def step(self, done: int, flush: bool = False) -> None:
        """`done` steps are made; `flush` writes the logs out, as with a checkpoint."""
        self.bar.update(self.task, completed=done)
        if flush:
            self.writer.flush()

    def log(self, done: int, losses: Mapping[str, float], rate: float, peak: int) -> None:
        """Show and write what the steps since the last call came to.

        Args:
            done: steps made.
            losses: their means; more than one are written each and as "loss", their sum.
            rate: learning rate of the last step.
            peak: bytes.
        """
        now = time.monotonic()
        seconds = (now - self.last[1]) / max(1, done - self.last[0])
        self.last = (done, now)
        before = self.step_seconds
        self.step_seconds = seconds if before is None else before + _NEWEST * (seconds - before)
        loss = sum(losses.values())
        scalars = {f"train/{name}": value for name, value in losses.items()}
        scalars |= {"train/loss": loss, "train/learning_rate": rate, "train/peak_bytes": peak}
        for name, value in {**scalars, "train/seconds_per_step": seconds}.items():
            self.writer.add_scalar(name, value, done)
        text = f"loss {loss:.4f}  lr {rate:.2e}  peak {peak / 1e9:.2f} GB"
        self.bar.update(self.task, description=text)
        if not self.console.is_terminal:
            left = timedelta(seconds=round(self.step_seconds * (self.total - done)))
            self.say(f"step {done}/{self.total}  {text}  left {left}")

    def evaluated(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show and write an evaluation's figures."""
        for name, value in metrics.items():
            self.writer.add_scalar(f"eval/{name}", value, done)
        self.console.print(metrics_table(f"after {done} steps", metrics))

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """The figures of an evaluation."""
    table = Table(*metrics, title=title, min_width=len(title))
    table.add_row(*(f"{value:.4f}" for value in metrics.values()))
    return table


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
