"""What the pictures show, as matplotlib has it."""

import pytest

from pvt_kernels.benchmarking import plots
from pvt_kernels.benchmarking.cases import FORWARD, LAYER, MEMORY, TRAINING, Case
from pvt_kernels.benchmarking.results import NOT_RUN, Measurement, Results

pytest.importorskip("matplotlib", reason="matplotlib is not installed").use("Agg")


def case_of(kind=LAYER, stage=1, mode=FORWARD, size=(800, 1216)):
    return Case(kind, f"stage {stage}", size, mode, "fp32", 1, "cpu")


def measurement(case, name, seconds, peak=10**8):
    return Measurement(case, name, samples=[seconds] * 3, peak_bytes=peak)


def layers():
    made = []
    for mode in (FORWARD, TRAINING):
        for stage, scale in ((1, 10.0), (2, 1.0)):
            case = case_of(stage=stage, mode=mode)
            made += [
                Measurement(case, "naive MHA", NOT_RUN, "29.6 GB needed, 21.0 GB free")
                if stage == 1
                else measurement(case, "naive MHA", 9.0),
                measurement(case, "eager SRA", 0.3 * scale),
                measurement(case, "SDPA SRA", 0.2 * scale),
                measurement(case, "pvt_kernels", 0.1 * scale),
            ]
    return made


def test_bars_start_at_zero_on_a_linear_axis_in_ms():
    figure = plots._bar_figure(layers(), "A CPU", memory=False)
    assert len(figure.axes) == 4
    for axis, scale in zip(figure.axes, (10, 10, 1, 1), strict=True):
        assert axis.get_xscale() == "linear" and axis.get_xlim()[0] == 0
        bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axis.patches}
        assert all(bar.get_x() == 0 for bar in axis.patches)
        wanted = {1: 300 * scale, 2: 200 * scale, 3: 100 * scale}
        assert {k: v for k, v in bars.items() if v} == pytest.approx(wanted)
        assert axis.get_xlim()[1] >= 300 * scale


def test_what_has_no_bar_says_why():
    figure = plots._bar_figure(layers(), "A CPU", memory=False)
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts[0][0] == "not run: 29.6 GB needed"
    # 90 times as long as the shortest: written, lest the others shrink to lines
    assert texts[2][0].startswith("off the scale: 9000 ms")
    assert texts[2][3] == "100 ms   2.00x"


def test_only_what_was_measured_is_in_the_legend_and_labels_are_few():
    sizes = [(224, 224), (448, 448), (800, 1088), (800, 1216), (800, 1344)]
    cases = [case_of(MEMORY, mode=TRAINING, size=size) for size in sizes]
    made = []
    for index, case in enumerate(cases):
        made.append(Measurement(case, "naive MHA", NOT_RUN, "44 GB needed, 21.0 GB free"))
        made.append(measurement(case, "eager SRA", 0.1, peak=10 ** (7 + index // 2)))
    figure = plots._memory_figure(made, "A CPU", 25 * 10**9)
    (axis,) = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["naive MHA, by the formula (not run)", "the machine's memory", "eager SRA"]
    labels = {label.get_text() for label in axis.get_xticklabels()}
    assert labels == {"224x224", "448x448", "800x1088", "800x1344"}
    assert axis.get_yscale() == "log" and axis.get_ylabel() == "MB"
    formatted = [axis.yaxis.get_major_formatter()(value, 0) for value in (10, 1000, 20000)]
    assert formatted == ["10", "1,000", "20,000"]


def test_curves_that_coincide_are_named():
    one = [(1.0, 10.0), (2.0, 20.0)]
    curves = {"a": one, "b": [(1.0, 10.5), (2.0, 19.0)], "c": [(1.0, 10.0), (2.0, 40.0)]}
    assert plots.coinciding(curves) == ["a and b: the same within 8%"]
    assert plots.coinciding({"a": one, "far": [(3.0, 10.0)]}) == []


def test_a_file_for_each_kind_size_and_dtype(tmp_path):
    environment = {"device": "A CPU", "memory_bytes": 10**10}
    memory = [measurement(case_of(MEMORY, mode=TRAINING), "eager SRA", 0.1)]
    written = plots.write_plots(Results(environment, [*layers(), *memory]), tmp_path)
    assert [path.name for path in written] == ["stages-800x1216-fp32.png", "memory-fp32.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
