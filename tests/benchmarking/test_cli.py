"""The command line: errors, and a small run from end to end."""

import re
from dataclasses import replace

import pytest

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
    ],
)
def test_errors_name_argument_given_and_accepted(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_plot_of_a_missing_file_is_an_error(capsys, tmp_path):
    assert main(["plot", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err


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


def test_info_names_versions_backends_and_models(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "compiled", "sdpa", "reference", "pvt_v2_b5", "13.2"):
        assert word in text
