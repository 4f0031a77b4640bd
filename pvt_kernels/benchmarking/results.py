"""The outcome of a run as data: what is kept, and what follows from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pvt_kernels.benchmarking.accuracy import is_wrong, verdict, worst
from pvt_kernels.benchmarking.cases import Case
from pvt_kernels.benchmarking.contenders import ALL_PEER_NAMES
from pvt_kernels.benchmarking.timing import best_peer, quartiles, speedup

OK, FAILED, NOT_RUN = "ok", "failed", "not run"
# of a timed contender whose error is above its budget, and far beyond any rounding
ABOVE_BUDGET, WRONG = "!", "WRONG"


@dataclass
class Measurement:
    """What became of one contender in one case.

    Attributes:
        status: OK (whatever its errors are), FAILED (raised) or NOT_RUN.
        reason: for any status but OK.
        samples: seconds of each round, comparable round by round within the case.
        errors: relative error of every compared tensor against the fp64 oracle.
        budgets: the errors allowed.
        flops: by the formula.
        peak_bytes: growth of memory beyond weights and input.
        largest_side: of the square images that a model can be trained on in
            needs.TRAINING_MEMORY, by the formula.
        note: what else the reader should know.
    """

    case: Case
    contender: str
    status: str = OK
    reason: str | None = None
    samples: list[float] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    budgets: dict[str, float] = field(default_factory=dict)
    flops: int | None = None
    peak_bytes: int | None = None
    largest_side: int | None = None
    note: str | None = None

    def end(self, status: str, reason: str) -> None:
        """Settle why there is nothing to time."""
        self.status, self.reason = status, reason

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """First and third quartile."""
        return quartiles(self.samples)[::2] if self.samples else None

    @property
    def throughput(self) -> float | None:
        """Images a second."""
        return self.case.batch / self.median if self.samples else None

    @property
    def gflops(self) -> float | None:
        """1e9 operations of the formula a second."""
        return self.flops / self.median / 1e9 if self.samples and self.flops else None

    @property
    def over_budget(self) -> str | None:
        """Which errors are above their budgets; None if there are none."""
        return verdict(self.errors, self.budgets)

    @property
    def mark(self) -> str:
        """ABOVE_BUDGET or WRONG, to stand beside the figures; empty if every error is small."""
        if is_wrong(self.errors, self.budgets):
            return WRONG
        return ABOVE_BUDGET if self.over_budget else ""

    @property
    def worst_error(self) -> tuple[str, float, float] | None:
        """The tensor closest to (or furthest beyond) its budget, its error and that budget."""
        if not self.errors:
            return None
        name = worst(self.errors, self.budgets)
        return name, self.errors[name], self.budgets[name]


@dataclass
class Results:
    """All measurements of a run, and what they were made on.

    Attributes:
        environment: of `environment.collect`; beside it the `command`, how many `cases` it has,
            and what of `timing.rates`.
    """

    environment: dict
    measurements: list[Measurement]

    @property
    def ended(self) -> int:
        """How many cases were measured."""
        return len(by_case(self.measurements))

    @property
    def complete(self) -> bool:
        """Whether the run is known not to have been interrupted."""
        return self.ended == self.environment.get("cases")

    def of(self, kind: str) -> list[Measurement]:
        """The measurements of one kind of case."""
        return [m for m in self.measurements if m.case.kind == kind]

    def save(self, path: Path) -> None:
        """Write as JSON, a measurement a line."""
        data = asdict(self)
        lines = ",\n".join(json.dumps(m) for m in data["measurements"])
        environment = json.dumps(data["environment"])
        path.write_text(
            f'{{"environment": {environment},\n"measurements": [\n{lines}\n]}}\n', encoding="utf-8"
        )

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not such JSON.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            measurements = [
                Measurement(
                    **{**m, "case": Case(**{**m["case"], "size": tuple(m["case"]["size"])})}
                )
                for m in data["measurements"]
            ]
            return cls(data["environment"], measurements)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"results: given {str(path)!r}, accepted a results.json of the benchmark "
                f"({type(error).__name__}: {error})"
            ) from error


def by_case(measurements: Sequence[Measurement]) -> dict[Case, list[Measurement]]:
    """Grouped, in the order they came."""
    groups: dict[Case, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.case, []).append(measurement)
    return groups


def ratio_to_best_peer(measurement: Measurement, group: Sequence[Measurement]) -> float | None:
    """How many times as fast as the fastest peer of the same case, by medians.

    A peer is one whatever its errors are. None if there is none, or nothing was timed.
    """
    samples = {m.contender: m.samples for m in group}
    peer = best_peer(samples, ALL_PEER_NAMES)
    if peer is None or not measurement.samples:
        return None
    return speedup(measurement.samples, samples[peer])
