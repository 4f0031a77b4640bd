"""Which runs may be published, and what becomes of the README."""

import pytest

from pvt_kernels.benchmarking import publish, timing
from pvt_kernels.benchmarking.cases import FORWARD, LAYER, TRAINING, Case
from pvt_kernels.benchmarking.results import NOT_RUN, Measurement, Results
from pvt_kernels.cli import main

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

README = f"# Title\n\nbefore\n\n{publish.BEGIN}\nold\n{publish.END}\n\nafter\n"
SECONDS = {"eager SRA": 0.4, "SDPA SRA": 0.2, "compiled SRA": 0.25, "pvt_kernels": 0.1}


@pytest.fixture
def results():
    measurements = [
        Measurement(
            Case(LAYER, f"stage {stage}", (800, 1216), mode, "fp32", 1, "cpu"),
            name,
            samples=[seconds * stage] * 7,
            errors={"output": 2e-6 if name == "compiled SRA" else 1e-7},
            budgets={"output": 1e-6},
            flops=10**9,
            peak_bytes=stage * 10**7,
        )
        for mode in (FORWARD, TRAINING)
        for stage in (1, 2, 3, 4)
        for name, seconds in SECONDS.items()
    ]
    environment = {
        "command": "python -m pvt_kernels bench --sizes 800x1216",
        "cases": 8,
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"python": "3.11", "torch": "2.14", "triton": None},
        "device": "A CPU (Zen 5, avx2), 2 threads",
        "memory_bytes": 24_000_000_000,
        "matmul_gflops": {"fp32": 187.4},
    }
    return Results(environment, measurements)


@pytest.fixture
def folders(tmp_path):
    """The run's folder and the README."""
    run, readme = tmp_path / "run", tmp_path / "README.md"
    run.mkdir()
    readme.write_text(README)
    return run, readme


def test_a_complete_run_is_copied_and_shown(results, folders):
    run, readme = folders
    results.save(run / "results.json")
    target = readme.parent / "benchmarks/results/a-cpu-zen-5-avx2-2-threads"
    target.mkdir(parents=True)
    (target / "old.png").write_text("of an older run")
    assert main(["publish", str(run), "--readme", str(readme)]) == 0
    names = {path.name for path in target.iterdir()}
    assert names == {"results.json", "table.md", "stages-800x1216-fp32.png"}
    assert Results.load(target / "results.json") == results
    assert "Command: `python -m pvt_kernels bench" in (target / "table.md").read_text()
    text = readme.read_text()
    assert text.startswith("# Title\n\nbefore\n") and text.endswith("after\n")
    assert "old" not in text
    row = "| stage 2, fwd+bwd | 800 | 400 | 500 ! | 200 | 2.00 | 20 / 20 / 20 / 20 |"
    assert row in text and text.count("| stage ") == 8 + 8
    assert "`python -m pvt_kernels bench --sizes 800x1216`" in text
    assert "(benchmarks/results/a-cpu-zen-5-avx2-2-threads/stages-800x1216-fp32.png)" in text
    # the markers stay: it can be written again
    assert main(["publish", str(run), "--readme", str(readme)]) == 0
    assert readme.read_text() == text


def test_samples_that_a_run_lacks_stay_published(results, folders):
    run, readme = folders
    results.save(run / "results.json")
    assert main(["publish", str(run), "--readme", str(readme)]) == 0
    text = readme.read_text()
    (run / "results.json").rename(run / "patched.json")
    assert main(["publish", str(run), "--readme", str(readme)]) == 0
    assert readme.read_text() == text
    target = readme.parent / "benchmarks/results/a-cpu-zen-5-avx2-2-threads"
    names = {path.name for path in target.iterdir()}
    assert names >= {"results.json", "table.md", "patched.json", "patched.md"}
    assert Results.load(target / "results.json") == results


def test_kinds_of_cpu_stand_side_by_side(results, folders):
    run, readme = folders
    results.save(run / "results.json")
    assert main(["publish", str(run), "--readme", str(readme)]) == 0
    # a slower code path of the same CPU, published after the faster one
    for m in results.measurements:
        m.samples = [2 * s if m.contender == "pvt_kernels" else 3 * s for s in m.samples]
    results.environment["device"] = "A CPU (Zen 5, portable), 2 threads"
    results.save(run / "results.json")
    assert main(["publish", str(run), "--readme", str(readme)]) == 0
    text = readme.read_text()
    first, second = (
        f"[A CPU (Zen 5, {path}), 2 threads]"
        f"(benchmarks/results/a-cpu-zen-5-{path}-2-threads/table.md), fp32"
        for path in ("avx2", "portable")
    )
    assert f"| times as fast as the best peer | {first} | {second} |" in text
    assert "| stage 3, 800x1216, fwd | 2.00 | 3.00 |" in text
    # in full the fastest
    assert "| stage 2, fwd+bwd | 800 | 400 | 500 ! | 200 | 2.00 | 20 / 20 / 20 / 20 |" in text
    assert "a-cpu-zen-5-avx2-2-threads/stages-800x1216-fp32.png" in text
    assert "take far too long" not in text

    # no peer of one layer ran
    for m in results.measurements:
        if m.contender != "pvt_kernels" and m.case.subject == "stage 3":
            m.end(NOT_RUN, "a call would take about 40 s")
            m.samples = []
    results.save(run / "results.json")
    assert main(["publish", str(run), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert "| stage 3, 800x1216, fwd | 2.00 | - |" in text
    assert "-: PyTorch's products of that dtype would take far too long there." in text


def test_who_is_far_behind_needs_fewer_rounds(results, folders):
    run, readme = folders
    for m in results.measurements:
        if m.contender == "eager SRA":
            m.samples = [2 * s for s in m.samples[: timing.ROUNDS_FAR_BEHIND]]
    results.save(run / "results.json")
    assert main(["publish", str(run), "--readme", str(readme)]) == 0


def few_rounds(results):
    results.measurements[5].samples.pop()


def interrupted(results):
    del results.measurements[-4:]


def no_stage_3(results):
    results.measurements = [m for m in results.measurements if m.case.stage != 3]
    results.environment["cases"] = 6


def unequal_instructions(results):
    results.environment |= {"cpu_kernels": "avx2", "pytorch_cpu_capability": "AVX512"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unequal_instructions, "kernels for avx2 beside PyTorch's for AVX512; accepted a run with"),
        (few_rounds, "has 6 rounds of SDPA SRA, stage 2, 800x1216, forward, fp32; accepted 7"),
        (interrupted, "was interrupted after 7 of 8 cases; accepted a complete run"),
        (no_stage_3, "lacks layers of the README's table; accepted a run that has all stages"),
    ],
)
def test_what_is_not_complete_is_refused(change, message, results, folders, capsys):
    run, readme = folders
    change(results)
    results.save(run / "results.json")
    assert main(["publish", str(run), "--readme", str(readme)]) == 2
    assert message in capsys.readouterr().err
    assert readme.read_text() == README and not (readme.parent / "benchmarks").exists()


def test_a_folder_without_samples_and_a_readme_without_markers_are_refused(
    results, folders, capsys
):
    run, readme = folders
    assert main(["publish", str(run), "--readme", str(readme)]) == 2
    assert "accepted a folder with results.json, patched.json, s" in capsys.readouterr().err
    (run / "patched.json").write_text(
        '{"environment": {"device": "A", "cases": 0}, "measurements": []}'
    )
    assert main(["publish", str(run), "--readme", str(readme)]) == 2
    assert "lacks bench's results.json, and none is published in" in capsys.readouterr().err
    (run / "patched.json").unlink()
    results.save(run / "results.json")
    readme.write_text("# Title\n")
    assert main(["publish", str(run), "--readme", str(readme)]) == 2
    assert "results: begin" in capsys.readouterr().err
