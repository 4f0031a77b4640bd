"""The command line: errors, and a small run from end to end."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pvt_kernels import _C
from pvt_kernels.benchmarking import cli, runner
from pvt_kernels.benchmarking.contenders import EAGER_SRA, PEERS
from pvt_kernels.cli import main


def briefly(case, chosen, progress):
    """Two rounds of two contenders."""
    chosen = replace(chosen, seconds=0.0, rounds=2)
    return runner.run_case(case, chosen, progress, [EAGER_SRA, PEERS[1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "800"], r"argument --sizes: size: given '800', accepted HEIGHTxWIDTH"),
        (["--dtype", "fp8"], r"argument --dtype: invalid choice: 'fp8' \(choose from .*bf16"),
        (["--stages", "5"], r"argument --stages: invalid choice: 5 \(choose from 1, 2, 3, 4\)"),
        (["--models", "vit"], r"argument --models: invalid choice: 'vit' .*pvt_tiny"),
        (["--models", "pvt_v2_b2_linear"], r"argument --models: invalid choice"),
        (["--batch", "0"], r"argument --batch: given '0', accepted a whole number"),
        (["--device", "tpu"], r"argument --device: given 'tpu', accepted cpu"),
        (["--sizes", "-224x224"], r"argument --sizes: size: given '-224x224', accepted HEIGHTxW"),
        (["--batch", "-1"], r"argument --batch: given '-1', accepted a whole number"),
        (["--output", __file__], r"argument --output: given '.*', which is a file, accepted a fo"),
        (["--model", "h100"], r"argument --model: given 'h100'; .* roofline --gpu h100$"),
    ],
)
def test_errors_name_argument_given_and_accepted(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_plot_of_a_missing_file_is_an_error(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["plot", str(tmp_path / "none.json")])
    assert exit_.value.code == 2
    wanted = r"argument RESULTS.json: given '.*none.json', accepted a file that exists\n$"
    assert re.search(wanted, capsys.readouterr().err)


def test_plot_of_a_file_without_results_is_an_error(capsys, tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert main(["plot", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"results: given '.*other.json', accepted a results.json", line)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("what was given"), 2, "error: what was given"),
        (FileNotFoundError("no such file"), 2, "error: no such file"),
        (OSError("disk full"), 1, "error: disk full"),
        (ImportError("needs another package"), 1, "error: needs another package"),
        (KeyboardInterrupt("3 of 5 are there"), 130, "Interrupted: 3 of 5 are there"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_exit_statuses(error, status, line, capsys, monkeypatch):
    def fail(console):
        raise error

    monkeypatch.setattr(cli.info, "print_info", fail)
    assert main(["info"]) == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("command", ["info", "bench", "bench-patch", "study", "plot", "publish",
                                     "roofline"])  # fmt: skip
def test_help_explains_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    options = re.split(r"\n(?=  -|  [A-Z])", text.partition("options:")[2])[1:]
    for option in options:
        # flags and what has to be given have none
        exempt = re.match(r" +(-h|--quick|--gpu)", option)
        assert exempt or re.search(r"default\s", option), option
    assert "METAVAR" not in text and len(text.split("\n\n")[1]) > 30


def test_bench_writes_results_tables_and_plots(tmp_path, capsys, monkeypatch):
    arguments = [
        "bench",
        "--quick",
        "--device=cpu",
        "--sizes=64x96",
        "--stages=1",
        "--models=pvt_tiny",
    ]
    monkeypatch.setattr(cli, "run_case", briefly)
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    command = "Command: `python -m pvt_kernels bench --quick --device=cpu --sizes=64x96"
    assert command in (tmp_path / "table.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "table.md",
        "stages-64x96-fp32.png",
        "backbones-64x96-fp32.png",
        "memory-fp32.png",
    }
    assert "Attention layers of PVT" in capsys.readouterr().out
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert main(["plot", str(tmp_path / "results.json")]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_runs_go_to_a_folder_that_git_ignores(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_case", briefly)
    assert main(["bench", "--quick", "--device=cpu", "--sizes=64x96", "--stages=2"]) == 0
    (folder,) = (tmp_path / "benchmarks/runs").iterdir()
    assert re.fullmatch(r".*(avx|portable).*-\d+-threads?", folder.name)
    assert (folder / "results.json").exists()
    root = Path(__file__).parents[2]
    assert "benchmarks/runs/" in (root / ".gitignore").read_text().splitlines()


def test_info_names_versions_backends_and_models(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "compiled", "sdpa", "reference", "pvt_v2_b5", "13.2"):
        assert word in text


def test_info_says_that_a_build_treats_gpus_as_older(capsys, monkeypatch):
    build = {"cuda": "13.0.88", "cuda_archs": ["sm_90", "compute_80"], "cuda_treat_as_arch": 70}
    monkeypatch.setattr(cli.info, "build_info", lambda: _C.build_info() | build)
    assert main(["info"]) == 0
    text = " ".join(re.sub("[│┃|]", " ", capsys.readouterr().out).split())
    expected = (
        "every GPU runs the kernels for compute capability 7.0 (PVT_KERNELS_TREAT_AS_ARCH=70)"
    )
    assert expected in text
