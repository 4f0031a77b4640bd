"""Draws the README's plot: a SegFormer-B2 at 1024x1024 before and after patch().

    python benchmarks/first_page_plot.py benchmarks/results/MACHINE/patched.json

PATCHED.json is what `python -m pvt_kernels bench-patch` measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from pvt_kernels.benchmarking.cases import FORWARD, PATCHED, TRAINING
from pvt_kernels.benchmarking.results import Measurement, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL, SIZE, DTYPE = "segformer_b2", (1024, 1024), "fp32"
# as measured, as it is called here, its colour
BARS = (
    ("unpatched, eager", "eager", "#9aa0a6"),
    ("unpatched, SDPA", "SDPA", "#56b4e9"),
    ("unpatched, compiled", "compiled", "#cc79a7"),
    ("patched", "patched", "#009e73"),
)
MODES = {FORWARD: "inference", TRAINING: "training step"}
OUTPUT = Path(__file__).parent.parent / "docs" / "assets" / "segformer-b2.png"


def draw(results: Results, path: Path) -> None:
    """Bars of time above bars of memory, inference beside training, each panel from zero.

    Raises:
        ValueError: the results lack one of the bars.
    """
    figure, axes = plt.subplots(2, len(MODES), figsize=(9.2, 4.4), layout="constrained")
    rounds = []
    for column, (mode, title) in enumerate(MODES.items()):
        found = [_find(results, mode, contender) for contender, *_ in BARS]
        rounds += [len(m.samples) for m in found]
        _draw_bars(axes[0][column], [m.median * 1e3 for m in found], "ms, median")
        _draw_bars(axes[1][column], [m.peak_bytes / 1e6 for m in found], "MB, peak")
        axes[0][column].set_title(title, fontsize=11)
    height, width = SIZE
    machine, versions = results.environment["device"], results.environment["versions"]
    figure.suptitle(
        f"SegFormer-B2 of transformers before and after patch(), {height}x{width}, {DTYPE}, "
        f"1 image\n{machine}, torch {versions['torch']}; {min(rounds)} "
        "rounds or more; MB beyond weights and input",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def _find(results: Results, mode: str, contender: str) -> Measurement:
    for m in results.of(PATCHED):
        named = (m.case.subject, m.case.size, m.case.dtype, m.case.mode, m.contender)
        if named == (MODEL, SIZE, DTYPE, mode, contender) and m.samples:
            return m
    raise ValueError(f"the results lack {MODEL} at {SIZE}, {DTYPE}, {mode}, {contender}")


def _draw_bars(axis: Axes, values: list[float], unit: str) -> None:
    names, colours = zip(*((name, colour) for _, name, colour in BARS), strict=True)
    bars = axis.barh(names, values, color=colours, height=0.72)
    axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4, fontsize=9)
    axis.invert_yaxis()
    # room for the longest bar's label
    axis.set_xlim(0, max(values) * 1.16)
    axis.xaxis.set_major_locator(plt.MaxNLocator(5))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel(unit, fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, metavar="PATCHED.json")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args()
    draw(Results.load(options.results), options.output)
    print(options.output)


if __name__ == "__main__":
    main()
