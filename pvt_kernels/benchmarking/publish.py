"""Makes a run the published one: below benchmarks/results, and in the README."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from pvt_kernels.benchmarking.cases import (
    CLASSIFICATION_SIZE,
    FORWARD,
    LAYER,
    MEMORY,
    QUICK_SIZE,
    TRAINING,
)
from pvt_kernels.benchmarking.contenders import PEER_NAMES
from pvt_kernels.benchmarking.environment import slug
from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.plots import write_plots
from pvt_kernels.benchmarking.report import about, format_ms, markdown, short_mode
from pvt_kernels.benchmarking.results import (
    OK,
    Measurement,
    Results,
    by_case,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.shapes import STAGES, Size, format_size
from pvt_kernels.benchmarking.table import Column, Table, markdown_table
from pvt_kernels.benchmarking.timing import ROUNDS_FAR_BEHIND, far_behind

RESULTS_FOLDER = Path("benchmarks/results")
# samples and their tables; a run has the first at least
FILES = {"results.json": "table.md", "patched.json": "patched.md", "study.json": "study.md"}
LEAST_ROUNDS = 7
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
# what the README shows
DTYPE, OWN = "fp32", "pvt_kernels"
# where no peer was run
NO_PEER = "-"
SHOWN = (*PEER_NAMES, OWN)


def publish(run: Path, readme: Path) -> list[Path]:
    """Copy a run's samples below benchmarks/results beside the README, with tables and plots.

    The folder is named after the machine and the code path that its CPU kernels ran. Samples that
    the run lacks stay in it as they were published before; tables and plots are made anew. So is
    the README's section between the markers BEGIN and END: the fastest of all published runs in
    full, and the ratios of all side by side.

    Returns:
        The files written.

    Raises:
        ValueError: the run is not complete, or the README has no such section.
    """
    given = _samples(run)
    if not given:
        raise ValueError(f"RUN: given {str(run)!r}, accepted a folder with {', '.join(FILES)}")
    for name, results in given.items():
        _check_complete(run / name, results)
    device = next(iter(given.values())).environment["device"]
    folder = readme.parent / RESULTS_FOLDER / slug(device)
    found = _samples(folder) | given
    if "results.json" not in found:
        raise ValueError(
            f"RUN: {run} lacks bench's results.json, and none is published in {folder}"
        )
    results = found["results.json"]
    if not _layers(results):
        raise ValueError(
            f"RUN: {run} lacks layers of the README's table; accepted a run that has all stages at "
            f"{format_size(QUICK_SIZE)} in {DTYPE}"
        )
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"--readme: given {str(readme)!r}, accepted one with {BEGIN} and {END}")

    require("matplotlib")  # before the old run goes
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    written = []
    for name, of_file in found.items():
        samples, table = folder / name, folder / FILES[name]
        of_file.save(samples)
        table.write_text(markdown(of_file), encoding="utf-8")
        written += [samples, table, *write_plots(of_file, folder)]
    section = _section(readme.parent)
    readme.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}", encoding="utf-8")
    return [*written, readme]


def _samples(folder: Path) -> dict[str, Results]:
    return {name: Results.load(folder / name) for name in FILES if (folder / name).is_file()}


def _check_complete(path: Path, results: Results) -> None:
    if not results.complete:
        raise ValueError(
            f"RUN: {path} was interrupted after {results.ended} of "
            f"{results.environment.get('cases', 'unknown')} cases; accepted a complete run"
        )
    kernels, pytorchs = map(results.environment.get, ("cpu_kernels", "pytorch_cpu_capability"))
    if kernels == "avx2" and pytorchs != "AVX2":
        raise ValueError(
            f"RUN: {path} ran this package's kernels for avx2 beside PyTorch's for {pytorchs}; "
            "accepted a run with ATEN_CPU_CAPABILITY=avx2, MKL_ENABLE_INSTRUCTIONS=AVX2 and "
            "ONEDNN_MAX_CPU_ISA=AVX2"
        )
    for case, group in by_case(results.measurements).items():
        timed = {m.contender: m.samples for m in group if m.status == OK and case.kind != MEMORY}
        for name, samples in timed.items():
            behind = samples and far_behind(name, timed)
            least = ROUNDS_FAR_BEHIND if behind else LEAST_ROUNDS
            if len(samples) < least:
                raise ValueError(
                    f"RUN: {path} has {len(samples)} rounds of {name}, {case}; accepted "
                    f"{least} at least"
                )


def _layers(
    results: Results, dtype: str = DTYPE, size: Size = QUICK_SIZE
) -> list[list[Measurement]]:
    """The layers that the README shows, forward before training; empty if one is missing."""
    groups = {
        (case.mode, case.stage): group
        for case, group in by_case(results.of(LAYER)).items()
        if (case.dtype, case.size) == (dtype, size) and {m.contender for m in group} >= set(SHOWN)
    }
    wanted = [(mode, stage) for mode in (FORWARD, TRAINING) for stage in STAGES]
    return [groups[key] for key in wanted] if groups.keys() >= set(wanted) else []


def _own(group: list[Measurement]) -> Measurement:
    return next(m for m in group if m.contender == OWN)


def _time(results: Results) -> float:
    """Of this package's layers together, in seconds."""
    return sum(_own(group).median or math.inf for group in _layers(results))


def _section(root: Path) -> str:
    """The fastest machine's table and plot, and all machines' ratios; `root` has the README."""
    runs = {
        path.parent.relative_to(root).as_posix(): Results.load(path)
        for path in sorted((root / RESULTS_FOLDER).glob("*/results.json"))
    }
    runs = {folder: results for folder, results in runs.items() if _layers(results)}
    fastest = min(runs, key=lambda folder: _time(runs[folder]))
    return f"{_fastest(runs[fastest], fastest)}\n\n{_side_by_side(runs)}"


def _side_by_side(runs: dict[str, Results]) -> str:
    """How many times as fast as the best peer, a column for each machine and code path."""
    columns, cells = [Column("times as fast as the best peer", number=False)], {}
    for folder, results in runs.items():
        device, found = results.environment["device"], {}
        dtypes = [d for d in results.environment["matmul_gflops"] if _layers(results, d)]
        columns.append(Column(f"[{device}]({folder}/table.md), {' / '.join(dtypes)}"))
        for size in (QUICK_SIZE, CLASSIFICATION_SIZE):
            for groups in zip(*(_layers(results, d, size) for d in dtypes), strict=True):
                case = groups[0][0].case
                ratios = [ratio_to_best_peer(_own(group), group) for group in groups]
                row = f"{case.subject}, {format_size(size)}, {short_mode(case)}"
                found[row] = " / ".join(f"{r:.2f}" if r else NO_PEER for r in ratios)
        for row, cell in found.items():
            cells.setdefault(row, {})[len(columns) - 1] = cell
    rows = [
        (row, *(found.get(column, "") for column in range(1, len(columns))))
        for row, found in cells.items()
    ]
    note = "In brackets: the code path; below the CPU's best one PyTorch was held to it too."
    if any(NO_PEER in cell.split() for row in rows for cell in row):
        note += f" {NO_PEER}: PyTorch's products of that dtype would take far too long there."
    return markdown_table(Table("Kinds of CPU side by side", columns, rows, [note]))


def _fastest(results: Results, folder: str) -> str:
    """Machine, command, one table and one plot."""
    layers = _layers(results)
    columns = (
        Column("ms", number=False),
        *(Column(name) for name in SHOWN),
        Column("times as fast as the best peer"),
        Column(f"peak MB: {' / '.join(SHOWN)}"),
    )
    rows = []
    for group in layers:
        found = {m.contender: m for m in group}
        ratio = ratio_to_best_peer(found[OWN], group)
        peaks = (found[name].peak_bytes for name in SHOWN)
        rows.append(
            (
                f"{found[OWN].case.subject}, {short_mode(found[OWN].case)}",
                *(_cell(found[name]) for name in SHOWN),
                f"{ratio:.2f}" if ratio else "",
                " / ".join("-" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks),
            )
        )
    case = layers[0][0].case
    size = format_size(case.size)
    note = (
        f"Median milliseconds of {_rounds(layers)} rounds that run all contenders in turn. Every "
        "result is compared with a float64 oracle; `!` marks a peer whose rounding errors are "
        "above their budget. MB: growth of memory beyond weights and input."
    )
    table = Table(f"Layers of PVT, {DTYPE}, {case.batch} image at {size}", columns, rows, [note])
    return "\n\n".join(
        [
            f"{about(results)} `{results.environment['command']}` "
            f"([all figures]({folder}/table.md), [samples]({folder}/results.json)):",
            markdown_table(table),
            f"![Time of layers]({folder}/stages-{size}-{DTYPE}.png)",
        ]
    )


def _cell(m: Measurement) -> str:
    return f"{format_ms(m.median)} {m.mark}".strip() if m.status == OK else m.status


def _rounds(layers: list[list[Measurement]]) -> str:
    counts = [len(m.samples) for group in layers for m in group if m.samples]
    return f"{min(counts)} to {max(counts)}"
