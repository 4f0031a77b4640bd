"""The tables that a check ends with, and the file that a bug report gets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from pvt_kernels.benchmarking.cases import DTYPES
from pvt_kernels.benchmarking.table import Column, Table, print_table
from pvt_kernels.checking.finding import (
    BEHAVIOUR,
    ERRORS,
    FAILED,
    MEMORY,
    NOT_RUN,
    PASSED,
    TIMING,
    Finding,
)

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
    for finding in findings:
        if finding.status == FAILED:
            console.print(f"FAILED: {line(finding)}", style="red", markup=False, soft_wrap=True)


def line(finding: Finding) -> str:
    """Everything but the figures."""
    parts = (finding.what, finding.case, finding.backend, finding.dtype)
    return f"{', '.join(filter(None, parts))}: {finding.detail or finding.status}"


def summary(findings: list[Finding]) -> str:
    """One line: how many passed, failed and were not run."""
    counts = [
        f"{sum(f.status == status for f in findings)} {status}"
        for status in (PASSED, FAILED, NOT_RUN)
    ]
    return ", ".join(counts)


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
        "float64. All memory that PyTorch hands out is NaN before."
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
        (str(f.backend), f.what, str(f.dtype), f.detail)
        for f in findings
        if f.kind == MEMORY and f.status != NOT_RUN
    ]
    names = ("backend", "layer", "dtype", "memory")
    return Table("Memory in training", [Column(name, number=False) for name in names], rows)


def _times(findings: list[Finding]) -> Table:
    timed = [f for f in findings if f.kind == TIMING]
    names = list(dict.fromkeys(f.what for f in timed))
    own = list(dict.fromkeys(f.what for f in timed if f.figures.get("own")))
    columns = [
        Column("ms", number=False),
        *map(Column, names),
        *(Column(f"{name} / best peer") for name in own),
    ]
    rows = []
    for (case,), some in _grouped(findings, TIMING, lambda f: (f.case,)).items():
        found = {f.what: f for f in some}
        rows.append((
            case,
            *(_milliseconds(found.get(name)) for name in names),
            *(_ratio(found.get(name)) for name in own),
        ))  # fmt: skip
    note = (
        "Medians of a few rounds in eager mode, all in turn, and how many times as fast as the "
        "best peer: a first look. `python -m pvt_kernels bench` measures."
    )
    return Table(f"Layers of PVT, {timed[0].dtype if timed else ''}", columns, rows, [note])


def _milliseconds(finding: Finding | None) -> str:
    samples = finding.figures["seconds"] if finding is not None else None
    if not isinstance(samples, Sequence) or not samples:
        return "-"
    return f"{1e3 * statistics.median(samples):.3g}"


def _ratio(finding: Finding | None) -> str:
    ratio = finding.figures.get("ratio") if finding is not None else None
    return f"{ratio:.2f}" if isinstance(ratio, float) else "-"


def _not_run(findings: list[Finding]) -> Table:
    missing = [f for f in findings if f.status == NOT_RUN and f.detail]
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in missing:
        groups.setdefault((f.backend or f.what, f.detail), []).append(f)
    rows = []
    for (who, why), some in groups.items():
        dtypes = dict.fromkeys(str(f.dtype) for f in some)
        rows.append((who, ", ".join(dtypes), str(len(some)), why))
    columns = [Column("who", number=False), Column("dtypes", number=False), Column("times"),
               Column("why", number=False)]  # fmt: skip
    return Table("Not run", columns, rows)


def _grouped(findings: list[Finding], kind: str, key: Key) -> dict[tuple, list[Finding]]:
    groups: dict[tuple, list[Finding]] = {}
    for finding in findings:
        if finding.kind == kind:
            groups.setdefault(key(finding), []).append(finding)
    return groups
