"""The tables that a check ends with, and the file that a bug report gets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from pvt_kernels.benchmarking.cases import DTYPES
from pvt_kernels.benchmarking.table import Column, Notes, Table, print_table
from pvt_kernels.checking.finding import (
    BEHAVIOUR,
    ERRORS,
    EXCEEDED,
    FAILED,
    MEMORY,
    NOT_RUN,
    PASSED,
    TIMING,
    Finding,
)
from pvt_kernels.checking.memory import LIMIT

Key = Callable[[Finding], tuple]


def save(
    path: Path, environment: dict[str, object], plan: dict[str, object], findings: list[Finding]
) -> None:
    """Write everything as JSON, a finding a line."""
    lines = ",\n".join(json.dumps(asdict(finding)) for finding in findings)
    head = json.dumps({"environment": environment, "plan": plan, "passed": passed(findings)})
    path.write_text(f'{head[:-1]},\n"findings": [\n{lines}\n]}}\n', encoding="utf-8")


def passed(findings: Iterable[Finding]) -> bool:
    return not any(finding.status == FAILED for finding in findings)


def print_report(findings: list[Finding], console: Console) -> None:
    """Every kind's table, what could not run and why, and the failures last."""
    for table in (
        _errors(findings),
        _behaviours(findings),
        _memory(findings),
        _times(findings),
        _not_run(findings),
    ):
        if table.rows:
            print_table(table, console)
    for status, style in ((EXCEEDED, "yellow"), (FAILED, "red")):
        for finding in findings:
            if finding.status == status:
                text = f"{status.upper()}: {line(finding)}"
                console.print(text, style=style, markup=False, soft_wrap=True)


def line(finding: Finding) -> str:
    """Everything but the figures."""
    parts = (finding.what, finding.case, finding.backend, finding.dtype)
    return f"{', '.join(filter(None, parts))}: {finding.detail or finding.status}"


def summary(findings: list[Finding]) -> str:
    """One line: of how many findings there is each status."""
    counts = (
        (sum(f.status == s for f in findings), s) for s in (PASSED, FAILED, EXCEEDED, NOT_RUN)
    )
    return ", ".join(f"{count} {status}" for count, status in counts if count)


def _errors(findings: list[Finding]) -> Table:
    def cell(some: list[Finding]) -> str:
        ran = [f for f in some if f.status != NOT_RUN]
        if not ran:
            return "-"
        shares = [f.figures["share"] for f in ran if "share" in f.figures]
        worst = f", {max(shares):.2f}" if shares else ""
        return f"{sum(f.status == PASSED for f in ran)}/{len(ran)}{worst}"

    note = (
        "Shapes within the error budget, of all; and the largest error, as a part of what is "
        "allowed: 2 times (outputs) and 3 times (gradients) PyTorch's in the same dtype, against "
        "float64. All memory that PyTorch hands out is NaN before. PyTorch's own functions, of the "
        "backend sdpa, may exceed what is allowed to this package's kernels."
    )
    return _by_dtype("Errors", findings, ERRORS, "op", cell, note)


def _behaviours(findings: list[Finding]) -> Table:
    def cell(some: list[Finding]) -> str:
        statuses = {f.status for f in some} - {NOT_RUN}
        return "FAILS" if FAILED in statuses else "holds" if statuses else "-"

    return _by_dtype("Behaviour of a layer's training step", findings, BEHAVIOUR, "what", cell)


def _by_dtype(
    title: str,
    findings: list[Finding],
    kind: str,
    heading: str,
    cell: Callable[[list[Finding]], str],
    *notes: str,
) -> Table:
    groups = _grouped(findings, kind, lambda f: (f.backend, f.what))
    columns = [Column("backend", number=False), Column(heading, number=False), *map(Column, DTYPES)]
    rows = []
    for (backend, what), some in groups.items():
        cells = [cell([f for f in some if f.dtype == dtype]) for dtype in DTYPES]
        if set(cells) != {"-"}:
            rows.append((backend, what, *cells))
    return Table(title, columns, rows, list(notes))


def _memory(findings: list[Finding]) -> Table:
    rows = [
        (
            str(f.backend),
            f.what,
            str(f.dtype),
            *(f"{f.figures[name] / 1e6:.1f}" for name in ("added_bytes", "kept_bytes")),
            f"{f.figures['ratio']:.3f}",
            f.status,
        )
        for f in findings
        if f.kind == MEMORY and f.status != NOT_RUN
    ]
    text = [Column(name, number=False) for name in ("backend", "layer", "dtype")]
    numbers = map(Column, ("adds, MB", "needs, MB", "ratio", "verdict"))
    note = (
        "What a layer adds to training's peak, by the allocator, and what its backward must have: "
        f"x, o, lse and the tensors of M rows. Allowed are {LIMIT} times."
    )
    return Table("Memory of a layer in training", [*text, *numbers], rows, [note])


def _times(findings: list[Finding]) -> Table:
    timed = [f for f in findings if f.kind == TIMING]
    names = list(dict.fromkeys(f.what for f in timed))
    columns = [Column("ms", number=False), *map(Column, names)]
    rows = []
    for (case,), some in _grouped(findings, TIMING, lambda f: (f.case,)).items():
        found = {f.what: f for f in some}
        rows.append((case, *(_milliseconds(found.get(name)) for name in names)))
    note = (
        "Medians of a few rounds in eager mode, all in turn; in brackets how many times as fast as "
        "the best peer. A first look: `python -m pvt_kernels bench` measures."
    )
    return Table(f"Layers of PVT, {timed[0].dtype if timed else ''}", columns, rows, [note])


def _milliseconds(finding: Finding | None) -> str:
    samples = finding.figures["seconds"] if finding is not None else None
    if not isinstance(samples, Sequence) or not samples:
        return "-"
    ratio = finding.figures["ratio"]
    times = f" ({ratio:.2f})" if isinstance(ratio, float) else ""
    return f"{1e3 * statistics.median(samples):.3g}{times}"


def _not_run(findings: list[Finding]) -> Table:
    missing = [f for f in findings if f.status == NOT_RUN and f.detail]
    notes = Notes()
    rows = []
    for (who, why), some in _grouped(
        missing, None, lambda f: (f.backend or f.what, f.detail)
    ).items():
        dtypes = dict.fromkeys(str(f.dtype) for f in some)
        rows.append((who, ", ".join(dtypes), str(len(some)), notes.mark(why)))
    columns = [Column("who", number=False), Column("dtypes", number=False), Column("times"),
               Column("why", number=False)]  # fmt: skip
    return Table("Not run", columns, rows, list(notes))


def _grouped(findings: list[Finding], kind: str | None, key: Key) -> dict[tuple, list[Finding]]:
    """By a key, of one kind or of all."""
    groups: dict[tuple, list[Finding]] = {}
    for finding in findings:
        if kind in (None, finding.kind):
            groups.setdefault(key(finding), []).append(finding)
    return groups
