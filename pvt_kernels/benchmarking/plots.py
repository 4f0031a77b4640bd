"""Results as pictures: bars of time for layers and models, curves by resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    CORE,
    FEED_FORWARD,
    FORWARD,
    LAYER,
    MEMORY,
    PATCHED,
    SCALE,
    TRAINING,
    Case,
)
from pvt_kernels.benchmarking.contenders import (
    FEED_FORWARD_PEERS,
    NAIVE,
    NAIVE_MHA,
    PEER_NAMES,
    UNPATCHED_NAMES,
)
from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.needs import layer_growth
from pvt_kernels.benchmarking.report import format_ms
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
    **dict(zip(UNPATCHED_NAMES, ("#e69f00", "#56b4e9", "#cc79a7"), strict=True)),
    **{p.name: c for p, c in zip(FEED_FORWARD_PEERS, ("#e69f00", "#cc79a7"), strict=True)},
    "ViT-Small/16 (timm)": "#cc79a7",
    "ResNet-50 (timm)": "#e69f00",
}
# this package's backends, in the order they appear
PACKAGE_COLOURS = ("#009e73", "#0b5d43", "#5ec9a5", "#00332a")
# hollow, and of different sizes: a curve shows through another
MARKERS = (("o", 9), ("s", 7), ("^", 8), ("D", 5), ("v", 8), ("x", 6))
GREY, RED = "#666666", "#b00020"
# a bar longer than so many times the shortest of its panel is written, not drawn
OFF_SCALE = 8
# curves that stay this close together are one in the picture, and a note says so
SAME_CURVE = 0.08
# the least distance of two labels of an axis, as a part of it
LABEL_DISTANCE = 0.11

# a figure's curve: (x, y) points
Points = list[tuple[float, float]]


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Write cores-, stages-, backbones-, patched-, memory- and scale-*.png of what was measured.

    Returns:
        The files written.
    """
    require("matplotlib").use("Agg")
    figures: dict[str, Figure] = {}
    stems = {CORE: "cores", LAYER: "stages", FEED_FORWARD: FEED_FORWARD, BACKBONE: "backbones"}
    for kind, stem in stems.items():
        for (dtype, size), group in _grouped(results.of(kind), lambda c: (c.dtype, c.size)):
            name = f"{stem}-{format_size(size)}-{dtype}"
            figures[name] = _bar_figure(group, results.environment["device"], memory=False)
    for kind in (MEMORY, PATCHED, SCALE):
        for dtype, group in _grouped(results.of(kind), lambda c: c.dtype):
            device = results.environment["device"]
            if kind == PATCHED:
                figure = _bar_figure(group, device, memory=True)
            elif kind == SCALE:
                figure = _scale_figure(group, device)
            else:
                figure = _memory_figure(group, device, results.environment["memory_bytes"])
            figures[f"{kind}-{dtype}"] = figure
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=120)
        require("matplotlib.pyplot").close(figure)
    return written


def _bar_figure(measurements: list[Measurement], device: str, memory: bool) -> Figure:
    """A panel for each layer or model and mode, with a bar for each contender."""
    modes = [m for m in (FORWARD, TRAINING) if any(x.case.mode == m for x in measurements)]
    subjects = list(dict.fromkeys((m.case.subject, m.case.size) for m in measurements))
    names = list(dict.fromkeys(m.contender for m in measurements))
    columns = [(mode, False) for mode in modes] + [(mode, True) for mode in modes if memory]
    figure, axes = require("matplotlib.pyplot").subplots(
        len(subjects),
        len(columns),
        figsize=(
            1.8 + (3.4 if memory else 4.4) * len(columns),
            1.4 + len(subjects) * (0.45 + 0.2 * len(names)),
        ),
        squeeze=False,
        layout="constrained",
    )
    groups = by_case(measurements)
    for row, (subject, size) in zip(axes, subjects, strict=True):
        for axis, (mode, of_memory) in zip(row, columns, strict=True):
            group = next(
                (
                    group
                    for case, group in groups.items()
                    if (case.subject, case.size, case.mode) == (subject, size, mode)
                ),
                [],
            )
            _draw_bars(axis, group, names, _memory_bar if of_memory else _time_bar)
            axis.tick_params(labelleft=axis is row[0])
        label = (
            subject if measurements[0].case.kind != PATCHED else f"{subject}\n{size[0]}x{size[1]}"
        )
        row[0].set_ylabel(label, fontsize=9)
    for axis, (mode, of_memory) in zip(axes[0], columns, strict=True):
        axis.set_title(f"{mode}, {'MB' if of_memory else 'ms'}", fontsize=10)
    figure.suptitle(_bar_title(measurements[0].case, device, memory), fontsize=10)
    return figure


# the length of a bar, its whiskers' ends and its label; the length is None if there is nothing
Bar = tuple[float | None, tuple[float, float] | None, str]


def _time_bar(m: Measurement, group: list[Measurement]) -> Bar:
    if m.status != OK:
        return None, None, _short_outcome(m)
    low, high = m.spread
    ratio = ratio_to_best_peer(m, group)
    times = f"   {ratio:.2f}x" if ratio else ""
    label = f"{format_ms(m.median)} ms{times} {m.mark}".rstrip()
    return m.median * 1e3, (low * 1e3, high * 1e3), label


def _memory_bar(m: Measurement, group: list[Measurement]) -> Bar:
    if m.peak_bytes is None:
        return None, None, _short_outcome(m) if m.status != OK else "not measured"
    return m.peak_bytes / 1e6, None, f"{m.peak_bytes / 1e6:.0f} MB"


def _draw_bars(
    axis: Axes,
    group: list[Measurement],
    names: list[str],
    bar_of: Callable[[Measurement, list[Measurement]], Bar],
) -> None:
    """Horizontal bars on a linear axis from zero, in the order of `names`."""
    colours = _colours(names)
    bars = {m.contender: bar_of(m, group) for m in group}
    lengths = [length for length, *_ in bars.values() if length is not None]
    longest = max((x for x in lengths if x <= OFF_SCALE * min(lengths)), default=1.0)
    longest_end = longest
    for place, name in enumerate(names):
        length, whiskers, label = bars.get(name, (None, None, "does not exist"))
        if length is None:
            axis.annotate(label, (0, place), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=8, color=GREY)  # fmt: skip
            continue
        if length > longest:
            length, whiskers, label = 0, None, f"off the scale: {label}"
        ends = [[length - whiskers[0]], [whiskers[1] - length]] if whiskers else None
        axis.barh(place, length, 0.78, color=colours[name], xerr=ends,
                  error_kw={"linewidth": 0.8})  # fmt: skip
        end = max(length, whiskers[1]) if whiskers else length
        axis.annotate(label, (end, place), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
        longest_end = max(longest_end, end)
    # room for the labels
    axis.set_xlim(0, 1.45 * longest_end)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def _bar_title(case: Case, device: str, memory: bool) -> str:
    at = f" at {format_size(case.size)}"
    subjects = {
        CORE: f"The attention alone of PVT's layers{at}",
        LAYER: f"Attention layers of PVT{at}",
        FEED_FORWARD: f"Feed-forward networks of PVT and PVTv2{at}",
        BACKBONE: f"Backbones{at}",
        PATCHED: "Other libraries' models before and after patch()",
    }
    peaks = "; MB: peak beyond weights and input" if memory else ""
    return (
        f"{subjects[case.kind]}, {_conditions(case)}, {device}\n"
        f"bars: median, lines: quartiles, x: times as fast as the best peer{peaks}"
    )


def _short_outcome(m: Measurement) -> str:
    """As much as fits a panel."""
    reason = (m.reason or "").partition(",")[0].partition(" for ")[0]
    return f"{m.status}: {reason}" if len(reason) < 30 else m.status


def _memory_figure(measurements: list[Measurement], device: str, limit: int) -> Figure:
    """Peak memory of the first layer over the pixels of the image."""
    figure, axis = require("matplotlib.pyplot").subplots(figsize=(9, 4.8), layout="constrained")
    cases = sorted(by_case(measurements), key=_pixels)
    curves = {
        name: sorted(
            (_pixels(m.case), m.peak_bytes / 1e6)
            for m in measurements
            if m.contender == name and m.peak_bytes is not None
        )
        for name in dict.fromkeys(m.contender for m in measurements)
    }
    missing = [c for c in cases if _pixels(c) not in dict(curves.get(NAIVE_MHA.name, []))]
    if missing:
        # what did not fit, from the last measured point on
        formula = [
            (_pixels(c), layer_growth(NAIVE, stage_shape(1, c.size, c.batch), c.torch_dtype,
                                      c.backward) / 1e6)
            for c in missing
        ]  # fmt: skip
        measured = curves.get(NAIVE_MHA.name, [])[-1:]
        axis.plot(*zip(*measured, *formula, strict=True), "--", color=GREY, linewidth=1,
                  label="naive MHA, by the formula (not run)")  # fmt: skip
        axis.axhline(limit / 1e6, color=RED, linewidth=1, label="the machine's memory")
    _draw_curves(axis, curves)
    _finish_curves(axis, {_pixels(c): format_size(c.size) for c in cases}, "MB")
    axis.set_xlabel("image (by its number of pixels)", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8.5)
    case = cases[0]
    figure.suptitle(
        f"Peak memory of stage 1's layer beyond weights and input, {case.mode}\n"
        f"{_conditions(case)}, {device}; log scale",
        fontsize=10,
    )
    return figure


def _scale_figure(measurements: list[Measurement], device: str) -> Figure:
    """Operations, time and peak memory over the side of the images."""
    figure, axes = require("matplotlib.pyplot").subplots(
        1, 3, figsize=(13, 5), layout="constrained"
    )
    panels = {
        "1e9 multiply-adds": lambda m: m.flops / 2e9,
        "ms": lambda m: m.median * 1e3 if m.samples else None,
        "MB at the peak": lambda m: m.peak_bytes / 1e6 if m.peak_bytes else None,
    }
    names = dict.fromkeys(m.contender for m in measurements)
    cases = by_case(measurements)
    for axis, (label, value) in zip(axes, panels.items(), strict=True):
        curves = {
            name: [
                (_pixels(m.case) ** 0.5, value(m))
                for m in measurements
                if m.contender == name and value(m) is not None
            ]
            for name in names
        }
        _draw_curves(axis, curves)
        _finish_curves(axis, {_pixels(c) ** 0.5: _side(c) for c in cases}, label)
        axis.set_xlabel("side of the image, pixels", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8.5)
    case = measurements[0].case
    figure.suptitle(
        f"Backbones by resolution, {case.mode}, {_conditions(case)}, {device}\n"
        "log scales; what has no time would have taken too long",
        fontsize=10,
    )
    return figure


def _draw_curves(axis: Axes, curves: dict[str, Points]) -> None:
    """Points joined by lines, and below the axis which of them coincide."""
    colours = _colours(list(curves))
    drawn = {name: points for name, points in curves.items() if points}
    for (marker, size), (name, points) in zip(MARKERS, drawn.items(), strict=False):
        axis.plot(*zip(*points, strict=True), marker=marker, markersize=size, fillstyle="none",
                  color=colours[name], linewidth=1.3, label=name)  # fmt: skip
    notes = coinciding(drawn)
    if notes:
        axis.set_title("\n".join(notes), fontsize=8, color=GREY)


def coinciding(curves: dict[str, Points]) -> list[str]:
    """Which curves lie on another: `SDPA SRA and compiled SRA: the same within 8 %`."""
    notes, names = [], list(curves)
    for index, name in enumerate(names):
        for other in names[:index]:
            mine, theirs = dict(curves[name]), dict(curves[other])
            shared = mine.keys() & theirs.keys()
            if shared and all(abs(mine[x] / theirs[x] - 1) <= SAME_CURVE for x in shared):
                notes.append(f"{other} and {name}: the same within {SAME_CURVE:.0%}")
    return notes


def _finish_curves(axis: Axes, ticks: dict[float, str], unit: str) -> None:
    """A log axis with whole numbers of the unit, and labels that don't touch."""
    ticker = require("matplotlib.ticker")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < 100 * low:
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_ylabel(unit)
    span, shown = max(ticks) - min(ticks), {}
    for x in sorted(ticks, reverse=True):
        if all(abs(x - other) >= LABEL_DISTANCE * span for other in shown):
            shown[x] = ticks[x]
    axis.set_xticks(list(shown), list(shown.values()), fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(axis="y", alpha=0.3)


def _conditions(case: Case) -> str:
    return f"{case.dtype}, batch {case.batch}"


def _side(case: Case) -> str:
    height, width = case.size
    return str(height) if height == width else format_size(case.size)


def _colours(names: Sequence[str]) -> dict[str, str]:
    package = iter(PACKAGE_COLOURS)
    return {name: COLOURS.get(name) or next(package) for name in names}


def _grouped(measurements: list[Measurement], key: Callable[[Case], object]):
    groups: dict[object, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(key(m.case), []).append(m)
    return groups.items()


def _pixels(case: Case) -> int:
    return case.size[0] * case.size[1]
