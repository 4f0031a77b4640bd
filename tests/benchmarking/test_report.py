"""Results to JSON and back, tables, plots."""

import json

import pytest
from rich.console import Console

from pvt_kernels.benchmarking import environment, plots, report
from pvt_kernels.benchmarking.cases import BACKBONE, FORWARD, LAYER, MEMORY, TRAINING, Case
from pvt_kernels.benchmarking.results import (
    NOT_RUN,
    WRONG,
    Measurement,
    Results,
    by_case,
    ratio_to_best_peer,
)

ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11", "torch": "2.14", "triton": None},
    "device": "A CPU, 2 threads",
    "memory_bytes": 24_000_000_000,
}


def measurement(case, contender, seconds, **more):
    return Measurement(
        case,
        contender,
        samples=[seconds, seconds * 1.1, seconds * 0.9],
        errors={"output": 1e-7, "x": 2e-7},
        budgets={"output": 1e-6, "x": 1e-6},
        flops=10**9,
        peak_bytes=10**8,
        **more,
    )


@pytest.fixture
def results():
    measurements = []
    for kind, subject in ((LAYER, "stage 1"), (BACKBONE, "pvt_tiny")):
        for mode in (FORWARD, TRAINING):
            case = Case(kind, subject, (800, 1216), mode, "fp32", 1, "cpu")
            measurements += [
                Measurement(case, "naive MHA", NOT_RUN, "29.6 GB needed, 21.0 GB free"),
                measurement(case, "eager SRA", 0.4),
                measurement(case, "SDPA SRA", 0.2),
                Measurement(case, "compiled SRA", WRONG, "relative error of output 'output' is 1"),
                measurement(case, "pvt_kernels[cpu]", 0.1, note="a remark"),
            ]
    for size in ((224, 224), (800, 1216)):
        case = Case(MEMORY, "stage 1", size, TRAINING, "fp32", 1, "cpu")
        measurements += [
            Measurement(case, "naive MHA", NOT_RUN, "44.5 GB needed, 21.0 GB free"),
            measurement(case, "eager SRA", 0.4),
            measurement(case, "pvt_kernels[cpu]", 0.1),
        ]
    return Results(ENVIRONMENT, measurements)


def test_round_trip(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"environment": {}, "measurements": [{}]}'])
def test_a_file_that_holds_no_results_is_named(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results: given .*other\.json.* accepted a results"):
        Results.load(path)


def test_ratio_is_against_the_fastest_peer(results):
    group = next(iter(by_case(results.measurements).values()))
    ratios = [ratio_to_best_peer(m, group) for m in group]
    assert ratios == [None, pytest.approx(0.5), 1.0, None, pytest.approx(2.0)]


def test_derived_figures(results):
    m = results.measurements[1]
    assert m.median == pytest.approx(0.4) and m.throughput == pytest.approx(2.5)
    assert m.gflops == pytest.approx(2.5)
    assert m.worst_error == ("x", 2e-7, 1e-6)


def test_tables_say_why_there_is_no_figure(results):
    text = report.markdown(results)
    assert text.count("\n### ") == 5
    assert "not run: 29.6 GB needed, 21.0 GB free" in text
    assert "WRONG: relative error of output" in text
    assert "| 100.0 [95.0, 105.0] | 10.00 | 10 | 2.00 | 100 | 2.0e-07 (x) | " in text
    assert "a remark" in text and "A CPU, 2 threads, 24 GB; python 3.11" in text
    console = Console(width=200, record=True)
    report.print_tables(results, console)
    text = console.export_text()
    assert "Attention layers of PVT, 800x1216, forward, fp32, batch 1" in text
    # square brackets are text, not rich's markup
    assert "pvt_kernels[cpu]" in text and "median ms [quartiles]" in text


def test_markdown_rows_have_as_many_cells_as_their_header(results):
    for table in report.tables(results):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_plots_are_written_from_saved_results(results, tmp_path):
    results.save(tmp_path / "results.json")
    written = plots.write_plots(Results.load(tmp_path / "results.json"), tmp_path)
    assert sorted(path.name for path in written) == [
        "backbones-800x1216-fp32.png",
        "memory-fp32.png",
        "stages-800x1216-fp32.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_environment_is_json_and_names_what_matters():
    import torch

    found = environment.collect(torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["threads"] == torch.get_num_threads() and found["memory_bytes"] > 1e8
    assert found["cpu"] and found["gpu"] is None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Intel(R) Xeon(R) CPU @ 2.60GHz, 2 threads", "intel-xeon-cpu-2-60ghz-2-threads"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
    ],
)
def test_slug(name, wanted):
    assert environment.slug(name) == wanted
