"""Results as pictures: time by stage, memory by resolution, backbones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_kernels.benchmarking.cases import BACKBONE, CORE, FORWARD, LAYER, MEMORY, TRAINING, Case
from pvt_kernels.benchmarking.contenders import NAIVE, NAIVE_MHA, PEER_NAMES
from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.needs import layer_growth
from pvt_kernels.benchmarking.results import (
    OK,
    Measurement,
    Results,
    by_case,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.shapes import format_size, stage_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    NAIVE_MHA.name: "#9aa0a6",
    **dict(zip(PEER_NAMES, ("#e69f00", "#56b4e9", "#cc79a7"), strict=True)),
}
# this package's backends, in the order they appear
PACKAGE_COLOURS = ("#009e73", "#0b5d43", "#5ec9a5", "#00332a")
GROUP_WIDTH = 0.84
# bars that differ by more than this share a logarithmic scale
LOG_SCALE_FROM = 8


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Write stages-*.png, memory-*.png and backbones-*.png for what was measured.

    Returns:
        The files written.
    """
    require("matplotlib").use("Agg")
    written = []
    for kind, stem in ((CORE, "cores"), (LAYER, "stages"), (BACKBONE, "backbones")):
        groups: dict[tuple, list[Measurement]] = {}
        for m in results.of(kind):
            groups.setdefault((m.case.dtype, m.case.size), []).append(m)
        for (dtype, size), group in groups.items():
            figure = _bar_figure(group, results.environment["device"])
            written.append(_save(figure, folder / f"{stem}-{format_size(size)}-{dtype}.png"))
    sweeps: dict[str, list[Measurement]] = {}
    for m in results.of(MEMORY):
        sweeps.setdefault(m.case.dtype, []).append(m)
    for dtype, group in sweeps.items():
        written.append(_save(_memory_figure(group, results), folder / f"memory-{dtype}.png"))
    return written


def _bar_figure(measurements: list[Measurement], device: str) -> Figure:
    """A panel for each mode: a group of bars for each stage or model."""
    modes = [m for m in (FORWARD, TRAINING) if any(x.case.mode == m for x in measurements)]
    figure, axes = require("matplotlib.pyplot").subplots(
        1, len(modes), figsize=(6.6 * len(modes), 4.6), squeeze=False, layout="constrained"
    )
    case = measurements[0].case
    for axis, mode in zip(axes[0], modes, strict=True):
        _draw_bars(axis, [m for m in measurements if m.case.mode == mode])
        axis.set_title(mode, fontsize=11)
    axes[0][0].set_ylabel("ms, median; lines: quartiles")
    handles = {}
    for axis in axes[0]:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [name for name in dict.fromkeys(m.contender for m in measurements) if name in handles]
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(names), 3 * len(modes)),
        fontsize=9,
    )
    figure.suptitle(_title(case, device))
    return figure


def _draw_bars(axis: Axes, measurements: list[Measurement]) -> None:
    names = list(dict.fromkeys(m.contender for m in measurements))
    colours = _colours(names)
    cases = by_case(measurements)
    width = GROUP_WIDTH / len(names)
    for position, group in enumerate(cases.values()):
        for m in group:
            index = names.index(m.contender)
            x = position + (index - (len(names) - 1) / 2) * width
            if m.status != OK:
                axis.text(
                    x, 0.02, _short_outcome(m), rotation=90, ha="center", va="bottom",
                    fontsize=7, color="#666666", transform=axis.get_xaxis_transform(),
                )  # fmt: skip
                continue
            low, high = m.spread
            axis.bar(
                x, m.median * 1e3, width * 0.92, color=colours[m.contender],
                yerr=[[(m.median - low) * 1e3], [(high - m.median) * 1e3]],
                error_kw={"linewidth": 0.8}, label=m.contender,
            )  # fmt: skip
            ratio = ratio_to_best_peer(m, group)
            if ratio:
                axis.annotate(
                    f"{ratio:.2f}x", (x, high * 1e3), xytext=(0, 2), ha="center", va="bottom",
                    textcoords="offset points", rotation=90, fontsize=7.5,
                )  # fmt: skip
    axis.set_xticks(range(len(cases)), [case.subject for case in cases])
    axis.set_xlim(-0.6, len(cases) - 0.4)
    medians = [m.median for m in measurements if m.status == OK]
    if medians and max(medians) > LOG_SCALE_FROM * min(medians):
        axis.set_yscale("log")
    # room for the labels, which stand upright
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (2 if axis.get_yscale() == "log" else 1.1))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _memory_figure(measurements: list[Measurement], results: Results) -> Figure:
    figure, axis = require("matplotlib.pyplot").subplots(figsize=(9.5, 4.8), layout="constrained")
    cases = sorted(by_case(measurements), key=_pixels)
    case = cases[0]
    names = list(dict.fromkeys(m.contender for m in measurements))
    for name, colour in _colours(names).items():
        points = sorted(
            (_pixels(m.case), m.peak_bytes)
            for m in measurements
            if m.contender == name and m.peak_bytes is not None
        )
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, [v / 1e9 for v in y], "o-", color=colour, label=f"{name}, measured")
    curve = [
        layer_growth(NAIVE, stage_shape(1, c.size, c.batch), c.torch_dtype, c.backward) / 1e9
        for c in cases
    ]
    grey = COLOURS[NAIVE_MHA.name]
    x = [_pixels(c) for c in cases]
    axis.plot(x, curve, "--", color=grey, label="naive MHA, by the formula")
    limit = results.environment["memory_bytes"] / 1e9
    axis.axhline(limit, color="#b00020", linewidth=1.2)
    axis.annotate(
        f"the machine's memory, {limit:.0f} GB", (x[0], limit), xytext=(0, 4),
        textcoords="offset points", color="#b00020", fontsize=9,
    )  # fmt: skip
    axis.set_yscale("log")
    axis.set_xticks(x, [format_size(c.size) for c in cases], rotation=35, ha="right")
    axis.set_ylabel("GB beyond weights and input (log scale)")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8.5)
    title = f"Peak memory of stage 1's layer, {case.mode}"
    figure.suptitle(
        f"{title}\n{results.environment['device']}, {case.dtype}, batch {case.batch}", fontsize=11
    )
    return figure


def _title(case: Case, device: str) -> str:
    subjects = {CORE: "the attention alone", LAYER: "an attention layer", BACKBONE: "a backbone"}
    return (
        f"Time of {subjects[case.kind]} at {format_size(case.size)} "
        "(labels: times as fast as the best peer)\n"
        f"{device}, {case.dtype}, batch {case.batch}"
    )


def _short_outcome(measurement: Measurement) -> str:
    """As much as fits beside a bar."""
    reason = measurement.reason or ""
    needed = reason.partition(" needed")[0] + " needed" if " needed" in reason else None
    return needed or (reason if reason.startswith("not in") else measurement.status)


def _colours(names: Sequence[str]) -> dict[str, str]:
    package = iter(PACKAGE_COLOURS)
    return {name: COLOURS.get(name) or next(package) for name in names}


def _pixels(case: Case) -> int:
    return case.size[0] * case.size[1]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    require("matplotlib.pyplot").close(figure)
    return path
