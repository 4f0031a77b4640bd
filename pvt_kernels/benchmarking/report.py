"""Results as tables: for the terminal and, in Markdown, for a README."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from rich.console import Console

from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    CORE,
    FEED_FORWARD,
    FORWARD,
    LAYER,
    MEMORY,
    PATCHED,
    SCALE,
    Case,
)
from pvt_kernels.benchmarking.contenders import UNPATCHED_NAMES
from pvt_kernels.benchmarking.needs import TRAINING_MEMORY
from pvt_kernels.benchmarking.results import (
    ABOVE_BUDGET,
    OK,
    WRONG,
    Measurement,
    Results,
    by_case,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.shapes import format_size
from pvt_kernels.benchmarking.table import Column, Notes, Table, markdown_table, print_table

# the ratio is what one looks for, and follows from the times
CONTENDER = Column("contender", number=False)
MEDIAN, RATIO, PEAK = Column("ms"), Column("x best"), Column("MB", drop=1)
LARGEST = Column("largest", drop=2)
GFLOPS, SHARE = Column("GFLOP/s", drop=2), Column("of peak", drop=2)
QUARTILES = Column("quartiles, ms", drop=3)
ROUNDS = Column("rounds", drop=4)
ERROR = Column("error", number=False, drop=5)
RATE, REMARK = Column("images/s", drop=6), Column("remark", number=False, drop=7)
TIMED_COLUMNS = (
    Column("", number=False),
    CONTENDER,
    MEDIAN,
    RATIO,
    PEAK,
    LARGEST,
    GFLOPS,
    SHARE,
    QUARTILES,
    ROUNDS,
    RATE,
    ERROR,
    REMARK,
)
PATCHED_COLUMNS = (
    Column("model", number=False),
    Column("size", number=False),
    Column("", number=False),
    Column("eager"),
    Column("SDPA"),
    Column("compiled"),
    Column("patched"),
    Column("x best"),
    Column("MB: eager / SDPA / compiled / patched", drop=1),
    Column("largest", drop=2),
)
SCALE_COLUMNS = (
    Column("size", number=False),
    CONTENDER,
    Column("G mult-adds"),
    MEDIAN,
    PEAK,
    GFLOPS,
    QUARTILES,
    ROUNDS,
)
HEADINGS = {
    CORE: "Attention alone, as in PVT's layers",
    LAYER: "Attention layers of PVT",
    FEED_FORWARD: "Feed-forward networks of PVT, and with PVTv2's convolution",
    BACKBONE: "Backbones",
    PATCHED: "Other libraries' models",
}
STATISTIC = (
    "ms: the median of all rounds. x best: the ms of the fastest of {peers} by those of the row. "
)
MEMORY_NOTE = "MB: peak growth of memory beyond weights and input. "
LARGEST_NOTE = (
    f"Largest: side of the largest square image that a step fits in {TRAINING_MEMORY / 1e9:.0f} GB "
    "with, beyond weights and image, by the formula. "
)
ERROR_NOTE = (
    "Error: relative RMS of the tensor nearest to its budget, against {oracle} in fp64; "
    f"{ABOVE_BUDGET}: above its budget, {WRONG}: far beyond any rounding."
)
PEERS_NOTE = STATISTIC.format(peers="eager, SDPA and compiled SRA")
NOTES = {
    CORE: f"Random queries, keys and values. {PEERS_NOTE}{ERROR_NOTE.format(oracle='the formula')}",
    LAYER: PEERS_NOTE + MEMORY_NOTE + ERROR_NOTE.format(oracle="the layer"),
    FEED_FORWARD: "Random tokens. "
    + STATISTIC.format(peers="eager and compiled")
    + MEMORY_NOTE
    + ERROR_NOTE.format(oracle="the network"),
    BACKBONE: "Feature pyramids, every attention layer and feed-forward network the contender's; "
    "compiled: the whole model. "
    + PEERS_NOTE
    + MEMORY_NOTE
    + LARGEST_NOTE
    + ERROR_NOTE.format(oracle="the whole model"),
    PATCHED: "Before and after patch(). "
    + STATISTIC.format(peers="eager, SDPA and compiled")
    + MEMORY_NOTE
    + LARGEST_NOTE
    + ERROR_NOTE.format(oracle="the unpatched model, with GELU for ReLU, whose gradient jumps,"),
    MEMORY: "MB: peak growth of memory beyond weights and input, of the first layer.",
    SCALE: "Without classifiers, on a photo. G mult-adds: 1e9 multiply-adds of convolutions and "
    "matrix products, counted from shapes. ms: the median of all rounds. " + MEMORY_NOTE.strip(),
}


def tables(results: Results) -> list[Table]:
    """One for each size, mode and dtype of the layers and models, and each memory sweep.

    Before them, of other libraries' models all in one.
    """
    made = []
    peaks = results.environment.get("peak_gflops", {})
    timed_row = partial(_timed_row, peaks=peaks)
    for case, group in _grouped(results.of(PATCHED), lambda c: (c.dtype, c.batch)):
        made.append(_patched_table(f"Models before and after patch(){_conditions(case)}", group))
    for kind, heading in HEADINGS.items():
        key = lambda c: (c.size, c.mode, c.dtype, c.batch)  # noqa: E731
        for case, group in _grouped(results.of(kind), key):
            title = f"{heading}, {format_size(case.size)}, {case.mode}{_conditions(case)}"
            made.append(_table(title, TIMED_COLUMNS, group, timed_row, NOTES[kind]))
    key = lambda c: (c.mode, c.dtype, c.batch)  # noqa: E731
    for case, group in _grouped(results.of(MEMORY), key):
        title = f"Peak memory of stage 1's layer, {case.mode}{_conditions(case)}"
        made.append(_memory_table(title, group))
    for case, group in _grouped(results.of(SCALE), key):
        title = f"Backbones by resolution, {case.mode}{_conditions(case)}"
        made.append(_table(title, SCALE_COLUMNS, group, _scale_row, NOTES[SCALE]))
    return made


def print_tables(results: Results, console: Console) -> None:
    """For the terminal."""
    console.print(f"\n{about(results)}\n", markup=False, highlight=False)
    for table in tables(results):
        print_table(table, console)


def markdown(results: Results) -> str:
    """All tables, the command that measured them, and what on."""
    parts = [about(results), f"Command: `{results.environment['command']}`"]
    if not results.complete:
        parts.append(f"**Interrupted** after {results.ended} of {results.environment['cases']}.")
    return "\n\n".join([*parts, *map(markdown_table, tables(results))]) + "\n"


def about(results: Results) -> str:
    """What the figures were measured on."""
    environment = results.environment
    versions = ", ".join(f"{name} {v or 'none'}" for name, v in environment["versions"].items())
    matmul = f"PyTorch's matrix product: {_rates(environment['matmul_gflops'])} GFLOP/s."
    peak = environment.get("peak_gflops")
    return (
        f"{environment['device']}, {environment['memory_bytes'] / 1e9:.0f} GB; {versions}; "
        f"{environment['date'][:10]}. {matmul}"
        + (f" Peak, of multiply-adds alone: {_rates(peak)} GFLOP/s." if peak else "")
    )


def _rates(by_dtype: dict[str, float]) -> str:
    return ", ".join(
        f"{rate:.{0 if rate >= 10 else 1}f} in {dtype}" for dtype, rate in by_dtype.items()
    )


def outcome(measurement: Measurement) -> str:
    """Why there is no figure, in words: `not run: 29.6 GB needed, 21.0 GB free`."""
    return f"{measurement.status}: {measurement.reason}"


def short_mode(case: Case) -> str:
    """`fwd` or `fwd+bwd`."""
    return "fwd" if case.mode == FORWARD else "fwd+bwd"


Row = Callable[[Measurement, list[Measurement], str, Notes], tuple[str, ...]]


def _table(
    title: str, columns: tuple[Column, ...], measurements: list[Measurement], row: Row, note: str
) -> Table:
    """A row for each contender of each case, the first with the case's subject."""
    rows, notes = [], Notes()
    for case, group in by_case(measurements).items():
        for index, m in enumerate(group):
            subject = format_size(case.size) if case.kind == SCALE else case.subject
            rows.append(row(m, group, "" if index else subject, notes))
    return Table(title, columns, rows, [note, *notes]).without_empty_columns()


def _timed_row(
    m: Measurement,
    group: list[Measurement],
    subject: str,
    notes: Notes,
    *,
    peaks: dict[str, float],
) -> tuple[str, ...]:
    if m.status != OK:
        empty = [""] * (len(TIMED_COLUMNS) - 3)
        return (subject, m.contender, f"{m.status} {notes.mark(m.reason)}", *empty)
    ratio = ratio_to_best_peer(m, group)
    name, error, _ = m.worst_error
    peak = peaks.get(m.case.dtype)
    return (
        subject,
        m.contender,
        _time(m, notes),
        f"{ratio:.2f}" if ratio else "",
        _peak(m),
        str(m.largest_side or ""),
        f"{m.gflops:.0f}" if m.gflops else "",
        f"{m.gflops / peak:.0%}" if m.gflops and peak else "",
        _quartiles(m),
        str(len(m.samples)),
        f"{m.throughput:.3g}",
        f"{error:.1e} ({name})",
        m.note or "",
    )


def _scale_row(
    m: Measurement, group: list[Measurement], subject: str, notes: Notes
) -> tuple[str, ...]:
    cost = f"{m.flops / 2e9:.1f}"
    if m.status != OK:
        empty = [""] * (len(SCALE_COLUMNS) - 4)
        return (subject, m.contender, cost, f"{m.status} {notes.mark(m.reason)}", *empty)
    rounds = str(len(m.samples))
    return (
        subject, m.contender, cost, format_ms(m.median), _peak(m), f"{m.gflops:.0f}",
        _quartiles(m), rounds,
    )  # fmt: skip


def _memory_table(title: str, measurements: list[Measurement]) -> Table:
    names, notes = list(dict.fromkeys(m.contender for m in measurements)), Notes()
    rows = []
    for case, group in by_case(measurements).items():
        cells = {
            m.contender: _peak(m) if m.status == OK else f"{m.status} {notes.mark(m.reason)}"
            for m in group
        }
        rows.append((format_size(case.size), *(cells.get(name, "") for name in names)))
    columns = (Column("size", number=False), *map(Column, names))
    return Table(title, columns, rows, [NOTES[MEMORY], *notes])


def _patched_table(title: str, measurements: list[Measurement]) -> Table:
    """A line for each model, size and mode: what patch() is worth."""
    rows, notes = [], Notes()
    for case, group in by_case(measurements).items():
        found = {m.contender: m for m in group}
        contenders = [found.get(name) for name in (*UNPATCHED_NAMES, "patched")]
        times = [
            "-"
            if m is None
            else _time(m, notes)
            if m.status == OK
            else f"{m.status} {notes.mark(m.reason)}"
            for m in contenders
        ]
        ratio = ratio_to_best_peer(found["patched"], group)
        memory = " / ".join(_peak(m) or "-" if m else "-" for m in contenders)
        gain = f"{ratio:.2f}" if ratio else ""
        sides = [str(m.largest_side or "-") if m else "-" for m in contenders]
        largest = " / ".join(sides) if case.backward else ""
        about_case = (case.subject, format_size(case.size), short_mode(case))
        rows.append((*about_case, *times, gain, memory, largest))
    return Table(title, PATCHED_COLUMNS, rows, [NOTES[PATCHED], *notes])


def format_ms(seconds: float) -> str:
    """Milliseconds with three digits at least."""
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.3g}"


def _time(m: Measurement, notes: Notes) -> str:
    """The median, with a mark and a note where errors are above their budgets."""
    marked = f" {m.mark} {notes.mark(f'{m.contender}: {m.over_budget}')}" if m.mark else ""
    return format_ms(m.median) + marked


def _quartiles(m: Measurement) -> str:
    return " - ".join(map(format_ms, m.spread))


def _peak(m: Measurement) -> str:
    return f"{m.peak_bytes / 1e6:.0f}" if m.peak_bytes is not None else ""


def _conditions(case: Case) -> str:
    return f", {case.dtype}" + (f", batch {case.batch}" if case.batch > 1 else "")


def _grouped(
    measurements: list[Measurement], key: Callable[[Case], tuple]
) -> Iterator[tuple[Case, list[Measurement]]]:
    """Groups of measurements whose cases have the same key, each with its first case."""
    groups: dict[tuple, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(key(m.case), []).append(m)
    return ((group[0].case, group) for group in groups.values())
