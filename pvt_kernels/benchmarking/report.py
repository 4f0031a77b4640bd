"""Results as tables: for the terminal and, in Markdown, for a README."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from pvt_kernels.benchmarking.cases import BACKBONE, CORE, LAYER, MEMORY, PATCHED, SCALE
from pvt_kernels.benchmarking.contenders import UNPATCHED_NAMES
from pvt_kernels.benchmarking.results import (
    OK,
    WRONG,
    Measurement,
    Results,
    by_case,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.shapes import format_size
from pvt_kernels.benchmarking.timing import MATMUL_SIZE, speedup

TIMED_COLUMNS = (
    "",
    "contender",
    "median ms [quartiles]",
    "images/s",
    "GFLOP/s",
    "x best peer",
    "peak MB",
    "error",
    "note",
)
PATCHED_COLUMNS = (
    "model",
    *UNPATCHED_NAMES,
    "patched",
    "times as fast",
    "peak MB: unpatched / patched",
)
SCALE_COLUMNS = (
    "size",
    "contender",
    "G multiply-adds",
    "median ms [quartiles]",
    "GFLOP/s",
    "peak MB",
    "note",
)
WIDTH = 160
HEADINGS = {
    CORE: "Attention alone, as in PVT's layers",
    LAYER: "Attention layers of PVT",
    BACKBONE: "Backbones",
    PATCHED: "Other libraries' models",
}
NOTES = {
    CORE: "Random queries, keys and values. Best peer and error: as of the layers.",
    LAYER: "Best peer: the fastest of eager, SDPA and compiled SRA, round by round. Peak: growth "
    "of memory beyond weights and input. Error: relative RMS error of the tensor nearest to its "
    "budget, against an fp64 oracle.",
    BACKBONE: "Feature pyramids, every attention layer swapped for the contender's. Error: against "
    "the whole model in fp64 at the same size.",
    PATCHED: "Before and after patch(). Best peer: the faster of eager and SDPA, round by round. "
    "Peak: growth of memory beyond weights and input. Error: against the unpatched model in fp64, "
    "with GELU for ReLU, whose gradient jumps.",
    MEMORY: "Peak growth of memory beyond weights and input, in MB, of the first layer.",
    SCALE: "Without classifiers, on a photo. Multiply-adds: of convolutions and matrix products, "
    "counted from shapes. Peak: growth of memory beyond weights and input.",
}


@dataclass(frozen=True)
class Table:
    """Text in rows."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def tables(results: Results) -> list[Table]:
    """One for each size, mode and dtype of the layers and models, and each memory sweep.

    Before them, of other libraries' models all in one.
    """
    device = results.environment["device"]
    made = [
        _patched_table(f"Models before and after patch(), {dtype}, batch {batch}, {device}", group)
        for (dtype, batch), group in _grouped(
            results.of(PATCHED), lambda c: (c.dtype, c.batch)
        ).items()
    ]
    for kind, heading in HEADINGS.items():
        for (size, mode, dtype, batch), group in _grouped(
            results.of(kind), lambda c: (c.size, c.mode, c.dtype, c.batch)
        ).items():
            title = f"{heading}, {format_size(size)}, {mode}, {dtype}, batch {batch}, {device}"
            rows = [row for case in by_case(group).values() for row in _timed_rows(case)]
            made.append(_without_empty_columns(Table(title, TIMED_COLUMNS, rows, NOTES[kind])))
    for (mode, dtype, batch), group in _grouped(
        results.of(MEMORY), lambda c: (c.mode, c.dtype, c.batch)
    ).items():
        title = f"Peak memory of stage 1's layer, {mode}, {dtype}, batch {batch}, {device}"
        made.append(_memory_table(title, group))
    for (mode, dtype, batch), group in _grouped(
        results.of(SCALE), lambda c: (c.mode, c.dtype, c.batch)
    ).items():
        title = f"Backbones by resolution, {mode}, {dtype}, batch {batch}, {device}"
        rows = [row for case in by_case(group).values() for row in _scale_rows(case)]
        made.append(Table(title, SCALE_COLUMNS, rows, NOTES[SCALE]))
    return made


def wide_console() -> Console:
    """Standard output; where that is no terminal, as wide as the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_tables(results: Results, console: Console) -> None:
    """For the terminal."""
    for table in tables(results):
        rich_table = RichTable(*map(escape, table.columns), title=table.title, caption=table.note)
        for index, column in enumerate(rich_table.columns):
            column.justify = "right" if _is_number_column(table.columns[index]) else "left"
            column.no_wrap = table.columns[index] in ("contender", *TIMED_COLUMNS[2:-1])
        previous = ""
        for row in table.rows:
            if row[0] and previous:
                rich_table.add_section()
            previous = row[0] or previous
            rich_table.add_row(*map(Text, row))
        console.print(rich_table)


def markdown(results: Results) -> str:
    """All tables, and what they were measured on."""
    environment = results.environment
    versions = ", ".join(f"{name} {v or 'none'}" for name, v in environment["versions"].items())
    parts = [
        f"{environment['device']}, {environment['memory_bytes'] / 1e9:.0f} GB; {versions}; "
        f"{environment['date'][:10]}.{_matmul_rates(environment)}"
    ]
    for table in tables(results):
        dashes = ["---:" if _is_number_column(c) else "---" for c in table.columns]
        lines = [table.columns, tuple(dashes), *table.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"### {table.title}\n\n{body}\n\n{table.note}")
    return "\n\n".join(parts) + "\n"


def _matmul_rates(environment: dict) -> str:
    rates = environment.get("matmul_gflops")
    if not rates:
        return ""
    listed = ", ".join(f"{rate:.0f} in {dtype}" for dtype, rate in rates.items())
    return f" A matrix product of {MATMUL_SIZE}^3 in the same run: {listed} GFLOP/s."


def _timed_rows(group: list[Measurement]) -> Iterable[tuple[str, ...]]:
    for index, m in enumerate(group):
        subject = m.case.subject if index == 0 else ""
        if m.status != OK:
            empty = [""] * (len(TIMED_COLUMNS) - 3)
            yield (subject, m.contender, *empty, outcome(m))
            continue
        ratio = ratio_to_best_peer(m, group)
        name, error, _ = m.worst_error
        rounds = f"{len(m.samples)} rounds" if len(m.samples) < 5 else ""
        yield (
            subject,
            m.contender,
            _time(m),
            f"{m.throughput:.2f}",
            f"{m.gflops:.0f}" if m.gflops else "",
            f"{ratio:.2f}" if ratio else "",
            _peak(m),
            f"{error:.1e} ({name})",
            "; ".join(filter(None, (rounds, m.note))),
        )


def _scale_rows(group: list[Measurement]) -> Iterable[tuple[str, ...]]:
    for index, m in enumerate(group):
        size = format_size(m.case.size) if index == 0 else ""
        cost = f"{m.flops / 2e9:.1f}"
        if m.status != OK:
            yield (size, m.contender, cost, "", "", "", outcome(m))
        else:
            yield (size, m.contender, cost, _time(m), f"{m.gflops:.0f}", _peak(m), m.note or "")


def _time(m: Measurement) -> str:
    low, high = m.spread
    return f"{m.median * 1e3:.1f} [{low * 1e3:.1f}, {high * 1e3:.1f}]"


def _peak(m: Measurement) -> str:
    return f"{m.peak_bytes / 1e6:.0f}" if m.peak_bytes is not None else ""


def outcome(measurement: Measurement) -> str:
    """Why there is no figure, in words: `not run: 29.6 GB needed, 21.0 GB free`."""
    status = "WRONG" if measurement.status == WRONG else measurement.status
    return f"{status}: {measurement.reason}"


def _memory_table(title: str, group: list[Measurement]) -> Table:
    names = list(dict.fromkeys(m.contender for m in group))
    rows = []
    for case, measurements in by_case(group).items():
        cells = {
            m.contender: f"{m.peak_bytes / 1e6:.0f}" if m.status == OK else outcome(m)
            for m in measurements
        }
        rows.append((format_size(case.size), *(cells.get(name, "") for name in names)))
    return Table(title, ("size", *names), rows, NOTES[MEMORY])


def _patched_table(title: str, group: list[Measurement]) -> Table:
    """A line for each model, size and mode: what patch() is worth."""
    rows = []
    for case, measurements in by_case(group).items():
        found = {m.contender: m for m in measurements}
        times, memory, gains = [], [], []
        patched = found["patched"]
        for m in (*(found.get(name) for name in UNPATCHED_NAMES), patched):
            times.append("-" if m is None else outcome(m) if m.status != OK else _ms(m.median))
            memory.append(f"{m.peak_bytes / 1e6:.0f}" if m and m.peak_bytes is not None else "-")
            if m is not None and m.samples and patched.samples and m is not patched:
                gains.append(f"{speedup(patched.samples, m.samples):.2f}")
        subject = f"{case.subject}, {format_size(case.size)}, {case.mode}"
        rows.append((subject, *times, " / ".join(gains), " / ".join(memory)))
    return Table(title, PATCHED_COLUMNS, rows, NOTES[PATCHED])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def _grouped(measurements: list[Measurement], key) -> dict[tuple, list[Measurement]]:
    groups: dict[tuple, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(key(m.case), []).append(m)
    return groups


def _without_empty_columns(table: Table) -> Table:
    kept = [i for i in range(len(table.columns)) if i < 2 or any(row[i] for row in table.rows)]
    columns = tuple(table.columns[i] for i in kept)
    rows = [tuple(row[i] for i in kept) for row in table.rows]
    return Table(table.title, columns, rows, table.note)


def _is_number_column(column: str) -> bool:
    return column not in ("", "contender", "note", "size", "error", "model")
