"""Results as pictures: time by stage, memory by resolution, backbones, what they cost by size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    CORE,
    FORWARD,
    LAYER,
    MEMORY,
    PATCHED,
    SCALE,
    TRAINING,
    Case,
)
from pvt_kernels.benchmarking.contenders import NAIVE, NAIVE_MHA, PEER_NAMES, UNPATCHED_NAMES
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
    **dict(zip(UNPATCHED_NAMES, ("#e69f00", "#56b4e9"), strict=True)),
    "ViT-Small/16 (timm)": "#cc79a7",
    "ResNet-50 (timm)": "#e69f00",
}
# this package's backends, in the order they appear
PACKAGE_COLOURS = ("#009e73", "#0b5d43", "#5ec9a5", "#00332a")
GROUP_WIDTH = 0.84
# bars that differ by more than this share a logarithmic scale
LOG_SCALE_FROM = 8


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Write stages-, memory-, backbones-, patched- and scale-*.png for what was measured.

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
    figures = {MEMORY: _memory_figure, PATCHED: _patched_figure, SCALE: _scale_figure}
    for kind, figure_of in figures.items():
        sweeps: dict[str, list[Measurement]] = {}
        for m in results.of(kind):
            sweeps.setdefault(m.case.dtype, []).append(m)
        for dtype, group in sweeps.items():
            written.append(_save(figure_of(group, results), folder / f"{kind}-{dtype}.png"))
    return written


def _bar_figure(measurements: list[Measurement], device: str, memory: bool = False) -> Figure:
    """A panel for each mode: a group of bars for each stage or model; below, their memory."""
    modes = [m for m in (FORWARD, TRAINING) if any(x.case.mode == m for x in measurements)]
    figure, axes = require("matplotlib.pyplot").subplots(
        1 + memory,
        len(modes),
        figsize=(6.6 * len(modes), 4.6 + 3.6 * memory),
        squeeze=False,
        layout="constrained",
    )
    case = measurements[0].case
    for axis, mode in zip(axes[0], modes, strict=True):
        _draw_bars(axis, [m for m in measurements if m.case.mode == mode])
        axis.set_title(mode, fontsize=11)
    axes[0][0].set_ylabel("ms, median; lines: quartiles")
    if memory:
        for axis, mode in zip(axes[1], modes, strict=True):
            _draw_memory_bars(axis, [m for m in measurements if m.case.mode == mode])
        axes[1][0].set_ylabel("MB at the peak, beyond weights and input")
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
    colours = _colours(measurements)
    for group, m, x, width in _places(measurements):
        if m.status != OK:
            axis.text(
                x, 0.02, _short_outcome(m), rotation=90, ha="center", va="bottom",
                fontsize=7, color="#666666", transform=axis.get_xaxis_transform(),
            )  # fmt: skip
            continue
        low, high = m.spread
        axis.bar(
            x, m.median * 1e3, width, color=colours[m.contender],
            yerr=[[(m.median - low) * 1e3], [(high - m.median) * 1e3]],
            error_kw={"linewidth": 0.8}, label=m.contender,
        )  # fmt: skip
        ratio = ratio_to_best_peer(m, group)
        if ratio:
            _label_bar(axis, f"{ratio:.2f}x", x, high * 1e3)
    _finish_bars(axis, measurements, [m.median for m in measurements if m.status == OK])


def _draw_memory_bars(axis: Axes, measurements: list[Measurement]) -> None:
    colours = _colours(measurements)
    for _, m, x, width in _places(measurements):
        if m.peak_bytes is not None:
            axis.bar(x, m.peak_bytes / 1e6, width, color=colours[m.contender])
            _label_bar(axis, f"{m.peak_bytes / 1e6:.0f}", x, m.peak_bytes / 1e6)
    _finish_bars(axis, measurements, [m.peak_bytes for m in measurements if m.peak_bytes])


def _places(
    measurements: list[Measurement],
) -> Iterator[tuple[list[Measurement], Measurement, float, float]]:
    """Each measurement with its case's group, its bar's middle and its width."""
    names = list(dict.fromkeys(m.contender for m in measurements))
    width = GROUP_WIDTH / len(names)
    for position, group in enumerate(by_case(measurements).values()):
        for m in group:
            x = position + (names.index(m.contender) - (len(names) - 1) / 2) * width
            yield group, m, x, width * 0.92


def _label_bar(axis: Axes, text: str, x: float, top: float) -> None:
    axis.annotate(
        text, (x, top), xytext=(0, 2), ha="center", va="bottom",
        textcoords="offset points", rotation=90, fontsize=7.5,
    )  # fmt: skip


def _finish_bars(axis: Axes, measurements: list[Measurement], values: list[float]) -> None:
    cases = by_case(measurements)
    axis.set_xticks(range(len(cases)), [_tick(case) for case in cases])
    axis.set_xlim(-0.6, len(cases) - 0.4)
    if values and max(values) > LOG_SCALE_FROM * min(values):
        axis.set_yscale("log")
    # room for the labels, which stand upright
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (2 if axis.get_yscale() == "log" else 1.1))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _tick(case: Case) -> str:
    """What a group of bars is of: where sizes differ within a figure, with its size."""
    if case.kind != PATCHED:
        return case.subject
    library, _, model = case.subject.replace("segformer", "transformers_segformer").partition("_")
    return f"{library}\n{model}\n{format_size(case.size)}"


def _memory_figure(measurements: list[Measurement], results: Results) -> Figure:
    figure, axis = require("matplotlib.pyplot").subplots(figsize=(9.5, 4.8), layout="constrained")
    cases = sorted(by_case(measurements), key=_pixels)
    case = cases[0]
    for name, colour in _colours(measurements).items():
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


def _patched_figure(measurements: list[Measurement], results: Results) -> Figure:
    return _bar_figure(measurements, results.environment["device"], memory=True)


def _scale_figure(measurements: list[Measurement], results: Results) -> Figure:
    """Operations, time and peak memory over the side of the images."""
    figure, axes = require("matplotlib.pyplot").subplots(
        1, 3, figsize=(13.2, 4.8), layout="constrained"
    )
    panels = {
        "10⁹ multiply-adds": lambda m: m.flops / 2e9,
        "ms, median": lambda m: m.median * 1e3 if m.samples else None,
        "MB beyond weights and input, peak": lambda m: m.peak_bytes / 1e6 if m.peak_bytes else None,
    }
    cases = by_case(measurements)
    ticks = [_pixels(case) ** 0.5 for case in cases]
    colours = _colours(measurements)
    for axis, (label, value) in zip(axes, panels.items(), strict=True):
        for name, colour in colours.items():
            points = [
                (_pixels(m.case) ** 0.5, value(m))
                for m in measurements
                if m.contender == name and value(m) is not None
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
        axis.set_yscale("log")
        axis.set_ylabel(f"{label} (log scale)")
        axis.set_xticks(ticks, [format_size(case.size) for case in cases], rotation=35, ha="right")
        axis.grid(axis="y", alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9)
    case = measurements[0].case
    figure.suptitle(
        f"Backbones by resolution, {case.mode}\n"
        f"{results.environment['device']}, {case.dtype}, batch {case.batch}",
        fontsize=11,
    )
    return figure


def _title(case: Case, device: str) -> str:
    at = f" at {format_size(case.size)}"
    subjects = {
        CORE: f"the attention alone{at}",
        LAYER: f"an attention layer{at}",
        BACKBONE: f"a backbone{at}",
        PATCHED: "models before and after patch()",
    }
    return (
        f"Time of {subjects[case.kind]} (labels: times as fast as the best peer)\n"
        f"{device}, {case.dtype}, batch {case.batch}"
    )


def _short_outcome(measurement: Measurement) -> str:
    """As much as fits beside a bar."""
    reason = measurement.reason or ""
    needed = reason.partition(" needed")[0] + " needed" if " needed" in reason else None
    return needed or (reason if reason.startswith("not in") else measurement.status)


def _colours(measurements: Sequence[Measurement]) -> dict[str, str]:
    package = iter(PACKAGE_COLOURS)
    names = dict.fromkeys(m.contender for m in measurements)
    return {name: COLOURS.get(name) or next(package) for name in names}


def _pixels(case: Case) -> int:
    return case.size[0] * case.size[1]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    require("matplotlib.pyplot").close(figure)
    return path
