"""The command line of the systems, from data to picture."""

import re
import sys

import pytest
import torch
from PIL import Image

from pvt_kernels import models, systems
from pvt_kernels.cli import main
from tests.systems import LAYOUTS

# a run of a few steps, on any system
BRIEFLY = ("iterations=2", "batch_size=4", "micro_batch=4")


def run(command, system, *arguments):
    return main([command, system, *map(str, arguments), "--device", "cpu"])


@pytest.mark.parametrize("system", systems.NAMES)
def test_a_system_trains_evaluates_and_predicts(system, shapes_data, tmp_path, capsys):
    data = shapes_data[LAYOUTS[system]]
    assert run("train", system, "--data", data, "--recipe", "shapes", "--output", tmp_path,
               "--workers", 1, "--set", *BRIEFLY) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert f"{system} on pvt_v2_b0, recipe shapes: 24 images, 2 steps of 4 images" in printed
    assert re.search(r"step 2/2  loss \d.*  lr \d.*  peak \d.* GB  left 0:00:00", printed)
    figures = re.findall(r"0\.\d{4}", printed)

    last = tmp_path / "last.pt"
    assert run("eval", system, "--data", data, "--checkpoint", last, "--workers", 0) == 0
    # the same figures as at the end of training
    assert set(re.findall(r"[01]\.\d{4}", capsys.readouterr().out)) <= set(figures) | {"1.0000"}

    image = sorted(data.rglob("*.jpg"))[0]
    picture = tmp_path / "picture.png"
    assert run("predict", system, image, "--checkpoint", last, "--output", picture) == 0
    assert Image.open(picture).width >= 320
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {
        "last", "events", "picture"
    }  # fmt: skip


def test_make_data(tmp_path, capsys):
    assert main(["make-data", str(tmp_path / "data"), "--images", "24"]) == 0
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(
        re.findall(r"data/(\w+)", capsys.readouterr().out)
    )
    assert main(["make-data", str(tmp_path / "data")]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_weights_of_the_original_code_are_evaluated(shapes_data, tmp_path, capsys):
    torch.manual_seed(0)
    path = tmp_path / "pvt_v2_b0.pth"
    torch.save(models.pvt_v2_b0(num_classes=6).state_dict(), path)
    given = ("--data", shapes_data["image_folder"], "--checkpoint", path, "--recipe", "shapes",
             "--workers", 0)  # fmt: skip
    assert run("eval", "classification", *given) == 0
    assert "top1" in capsys.readouterr().out
    assert run("eval", "classification", *given, "--model", "pvt_tiny") == 1
    assert "does not fit pvt_tiny" in capsys.readouterr().err
    assert run("predict", "classification", path, "--checkpoint", path) == 1
    assert "it names no classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), r"missing folder nowhere"),
        (("--data", "nowhere", "--recipe", "paper"), r"recipe: given 'paper', accepted imagenet"),
        (("--data", "nowhere", "--set", "lr=1"), r"has no setting 'lr'"),
    ],
)
def test_errors_end_with_status_1(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "classification", *arguments) == 1
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "yolo", "--data", "x"], r"invalid choice: 'yolo' \(choose from .*classif"),
        (["train", "classification"], r"required: --data"),
        (["train", "classification", "--data", "x", "--set", "a"], r"accepted FIELD=VALUE"),
        (["train", "classification", "--data", "x", "--precision", "fp8"], r"fp32.*bf16.*fp16"),
    ],
)
def test_usage_errors_end_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_a_missing_extra_says_how_to_install_it(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pvt_kernels.systems.class")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert run("train", "classification", "--data", "x") == 1
    error = capsys.readouterr().err
    assert "torchmetrics" in error and "pip install 'pvt_kernels[train]'" in error
