"""Results to JSON and back, and what their tables say; how they fit a terminal."""

import io
import json
import re

import pytest
from rich.console import Console

from pvt_kernels.benchmarking import environment, info, model, report, table
from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    FORWARD,
    LAYER,
    MEMORY,
    PATCHED,
    SCALE,
    TRAINING,
    Case,
)
from pvt_kernels.benchmarking.results import (
    NOT_RUN,
    Measurement,
    Results,
    by_case,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.table import Column, Notes, Table

ENVIRONMENT = {
    "command": "python -m pvt_kernels bench --some option",
    "cases": 10,
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11", "torch": "2.14", "triton": None},
    "device": "A CPU, 2 threads",
    "memory_bytes": 24_000_000_000,
    "matmul_gflops": {"fp32": 187.4},
    "peak_gflops": {"fp32": 500.0},
}
WIDTHS = pytest.mark.parametrize("width", [80, 120, 160])


def measurement(case, contender, seconds, error=2e-7, **more):
    return Measurement(
        case,
        contender,
        samples=[seconds, seconds * 1.1, seconds * 0.9],
        errors={"output": 1e-7, "x": error},
        budgets={"output": 1e-6, "x": 1e-6},
        flops=10**9,
        peak_bytes=10**8,
        **more,
    )


@pytest.fixture
def results():
    """Of every kind of case, with every outcome."""
    measurements = []
    for kind, subject in ((LAYER, "stage 1"), (BACKBONE, "pvt_v2_b2")):
        for mode in (FORWARD, TRAINING):
            case = Case(kind, subject, (800, 1216), mode, "fp32", 1, "cpu")
            measurements += [
                Measurement(case, "naive MHA", NOT_RUN, "29.6 GB needed, 21.0 GB free"),
                measurement(case, "eager SRA", 12.3456),
                measurement(case, "SDPA SRA", 0.2, error=2e-6),
                measurement(case, "compiled SRA", 0.4, error=1.0),
                measurement(case, "pvt_kernels[triton]", 0.1, note="a remark"),
            ]
    for size in ((224, 224), (800, 1216)):
        case = Case(MEMORY, "stage 1", size, TRAINING, "fp32", 1, "cpu")
        measurements += [
            Measurement(case, "naive MHA", NOT_RUN, "44.5 GB needed, 21.0 GB free"),
            *(measurement(case, name, 0.4) for name in ("eager SRA", "SDPA SRA", "compiled SRA")),
            measurement(case, "pvt_kernels[triton]", 0.1),
        ]
    for mode in (FORWARD, TRAINING):
        case = Case(PATCHED, "transformers_pvt", (1024, 1024), mode, "fp32", 1, "cpu")
        measurements += [
            measurement(case, "unpatched, eager", 33.729),
            measurement(case, "patched", 0.1),
        ]
    for size in ((224, 224), (1344, 1344)):
        case = Case(SCALE, "backbones", size, FORWARD, "fp32", 1, "cpu")
        measurements += [
            Measurement(case, "PVT-Small", NOT_RUN, "would take about 90 s", flops=10**13),
            measurement(case, "PVT-Small, full attention", 12.0),
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


def test_ratio_is_against_the_fastest_peer_whatever_its_errors_are(results):
    group = next(iter(by_case(results.measurements).values()))
    ratios = [ratio_to_best_peer(m, group) for m in group]
    assert [m.mark for m in group] == ["", "", "!", "WRONG", ""]
    assert ratios == pytest.approx([None, 0.2 / 12.3456, 1.0, 0.5, 2.0])


def test_a_ratio_follows_from_the_times_beside_it(results):
    timed = [t for t in report.tables(results) if t.title.startswith(("Attention", "Backbones, "))]
    assert len(timed) == 4
    for shown in timed:
        names = [column.name for column in shown.columns]
        time, ratio = names.index("ms"), names.index("x best")
        times = {row[1]: float(row[time].split()[0]) for row in shown.rows if row[ratio]}
        best = min(times[name] for name in ("eager SRA", "SDPA SRA", "compiled SRA"))
        for row in shown.rows[1:]:
            assert float(row[ratio]) == pytest.approx(best / times[row[1]], abs=0.01)


def test_derived_figures(results):
    m = results.measurements[4]
    assert m.median == pytest.approx(0.1) and m.throughput == pytest.approx(10)
    assert m.gflops == pytest.approx(10)
    assert m.worst_error == ("x", 2e-7, 1e-6)


def test_markdown_has_every_figure_the_command_and_why_there_is_none(results):
    text = report.markdown(results)
    assert text.count("\n### ") == 9
    assert "| naive MHA | not run (1) |" in text
    assert "(1) 29.6 GB needed, 21.0 GB free" in text
    assert "| SDPA SRA | 200 ! (2) | 1.00 |" in text
    assert "(2) SDPA SRA: relative error of gradient 'x' is 2.0e-06, allowed 1.0e-06" in text
    assert "| compiled SRA | 400 WRONG (3) | 0.50 |" in text
    wanted = (
        "| pvt_kernels[triton] | 100 | 2.00 | 100 | 10 | 2% | 95.0 - 105 | 3 | 10 | 2.0e-07 (x) |"
    )
    assert wanted in text
    assert "187 in fp32 GFLOP/s. Peak, of multiply-adds alone: 500 in fp32 GFLOP/s." in text
    assert "a remark" in text and "A CPU, 2 threads, 24 GB; python 3.11" in text
    assert "Command: `python -m pvt_kernels bench --some option`" in text
    assert "Interrupted" not in text
    results.measurements = [m for m in results.measurements if m.case.kind != SCALE]
    assert "**Interrupted** after 8 of 10." in report.markdown(results)


def test_rows_have_as_many_cells_as_their_header(results):
    for shown in report.tables(results):
        assert all(len(row) == len(shown.columns) for row in shown.rows)


def printed(width, print_):
    console = Console(width=width, record=True, file=io.StringIO())
    print_(console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@WIDTHS
def test_tables_fit_the_terminal_with_every_cell_whole(results, width):
    lines = printed(width, lambda console: report.print_tables(results, console))
    assert all(any(shown.title in line for line in lines) for shown in report.tables(results))
    text = "\n".join(lines)
    for shown in report.tables(results):
        fitting = shown.fitting(width)
        names = [column.name for column in fitting.columns]
        for row in fitting.rows:
            # in one line, and no cell cut or wrapped
            pattern = r"\s+".join(re.escape(cell) for cell in row if cell)
            assert re.search(pattern, text), row
        if shown.title.startswith("Attention layers"):
            assert names[:5] == ["", "contender", "ms", "x best", "MB"]
            assert ("error" in names) == (width >= 120)
    # below the table, and in words that wrap
    assert "(1) 29.6 GB needed, 21.0 GB free" in lines


@WIDTHS
@pytest.mark.parametrize("gpu", model.GPU_MODELS)
def test_the_roofline_fits_the_terminal(gpu, width):
    import torch

    lines = printed(
        width,
        lambda console: model.print_model(
            console, model.GPU_MODELS[gpu], torch.float16, (800, 1216), [1, 4], 1
        ),
    )
    assert any(
        re.match(r"4, bwd +out projection +[\d.]+ +[\d.]+ +[\d.]+  ", line) for line in lines
    )
    assert any(re.match(r" +attention_dkdv +[\d.]+ +[\d.]+ +[\d.]+  ", line) for line in lines)


@WIDTHS
def test_info_fits_the_terminal(width):
    lines = printed(width, info.print_info)
    assert any("pvt_small_full_attention" in line and "20.2" in line for line in lines)
    assert any("runs in fp32, bf16, fp16" in line for line in lines)


def test_columns_leave_in_order_and_some_stay():
    columns = [Column("a"), Column("bb", drop=1), Column("ccc", drop=2)]
    shown = Table("", columns, [("1", "22", "333")])
    kept = {width: [c.name for c in shown.fitting(width).columns] for width in (10, 9, 5, 4, 1)}
    assert kept == {10: ["a", "bb", "ccc"], 9: ["a", "bb"], 5: ["a", "bb"], 4: ["a"], 1: ["a"]}


def test_a_note_is_said_once():
    notes = Notes()
    assert [notes.mark(text) for text in ("x", "y", "x")] == ["(1)", "(2)", "(1)"]
    assert list(notes) == ["(1) x", "(2) y"]


def test_brackets_are_text():
    lines = printed(
        80, lambda c: table.print_table(Table("[b]", [Column("[i]")], [("x[0]",)], ["[1]"]), c)
    )
    assert {"[b]", "[i]", "x[0]", "[1]"} <= {line.strip() for line in lines}


def test_environment_is_json_and_names_what_matters():
    import torch

    found = environment.collect(torch.device("cpu"), "command", 3)
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["threads"] == torch.get_num_threads() and found["memory_bytes"] > 1e8
    assert found["cpu"] and found["gpu"] is None
    assert (found["command"], found["cases"]) == ("command", 3)


CPUINFO = """vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: {name}
flags\t\t: fma avx2 sse
"""


@pytest.mark.parametrize(
    ("vendor", "family", "model", "wanted"),
    [
        ("AuthenticAMD", 26, 2, "Zen 5"),
        ("AuthenticAMD", 25, 17, "Zen 4"),
        ("AuthenticAMD", 25, 1, "Zen 3"),
        ("AuthenticAMD", 23, 49, "Zen 2"),
        ("GenuineIntel", 6, 143, "Sapphire Rapids"),
        ("GenuineIntel", 6, 255, "family 6 model 255"),
        ("Other", 1, 2, "family 1 model 2"),
    ],
)
def test_a_machine_is_named_by_its_microarchitecture(vendor, family, model, wanted, monkeypatch):
    import torch

    text = CPUINFO.format(vendor=vendor, family=family, model=model, name="A CPU")
    monkeypatch.setattr(environment, "_cpuinfo", lambda: text)
    monkeypatch.setattr(environment, "cpu_kernels", lambda: "avx2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert environment.device_name(torch.device("cpu")) == f"A CPU ({wanted}, avx2), 2 threads"
    assert environment.cpu_flags() == ["avx2", "fma"]


def test_a_machine_that_tells_nothing_is_named_all_the_same(monkeypatch):
    monkeypatch.setattr(environment, "_cpuinfo", lambda: "")
    assert environment.microarchitecture() is None and environment.cpu_model()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Intel(R) Xeon(R) CPU @ 2.60GHz, 2 threads", "intel-xeon-cpu-2-60ghz-2-threads"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        (
            "AMD EPYC (Zen 5, avx512_bf16), 2 threads",
            "amd-epyc-zen-5-avx512-bf16-2-threads",
        ),
    ],
)
def test_slug(name, wanted):
    assert environment.slug(name) == wanted
