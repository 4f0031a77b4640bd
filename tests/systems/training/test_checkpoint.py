"""Checkpoints: whole or not there, readable, and named when they don't fit."""

import argparse
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from pvt_kernels import models
from pvt_kernels.models import Loaded
from pvt_kernels.systems.training import checkpoint


def test_save_and_load(tmp_path):
    state = {"step": 3, "model": {"w": torch.arange(4.0)}, "settings": {"epochs": "2"}}
    checkpoint.save(state, tmp_path / "last.pt")
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert loaded["step"] == 3 and loaded["settings"] == {"epochs": "2"}
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save({"w": torch.ones(1)}, path)

    def fail(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save({"w": torch.zeros(1)}, path)
    assert checkpoint.load(path) == {"w": torch.ones(1)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


WRITER = """
import sys, torch
from pathlib import Path
from pvt_kernels.systems.training import checkpoint
for step in range(1, 10**6):
    checkpoint.save({"step": step, "model": {"w": torch.full((1 << 20,), float(step))}},
                    Path(sys.argv[1]))
    print(step, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        for _ in range(3):
            written = int(writer.stdout.readline())
        time.sleep(0.003)
        writer.send_signal(signal.SIGKILL)
    state = checkpoint.load(path)
    assert state["step"] >= written
    assert (state["model"]["w"] == state["step"]).all()


def write(path, content):
    """A file of bytes, or of what torch.save writes."""
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "broken checkpoint .*: the file is empty; accepted what torch.save wrote"),
        (b"no checkpoint", "broken checkpoint .*: it is cut short or something else; accepted"),
        ({"args": argparse.ArgumentParser}, "it holds a argparse.ArgumentParser, which is not re"),
        ([1], "holds no weights, accepted what torch.save wrote of weights"),
        ({"epoch": 1}, "holds no weights"),
        ({"model": [torch.zeros(1)]}, "holds no weights"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(content, message, tmp_path):
    write(tmp_path / "file.pt", content)
    with pytest.raises(ValueError, match=message) as raised:
        checkpoint.load(tmp_path / "file.pt")
    assert "file.pt" in str(raised.value) and "\n" not in str(raised.value)


def test_a_checkpoint_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"file\.pt: it is cut short"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match=r"missing checkpoint .*none\.pt"):
        checkpoint.load(tmp_path / "none.pt")


def test_only_the_same_run_is_resumed(tmp_path):
    saved = dict.fromkeys(checkpoint.KEYS) | {"seed": 1}
    with pytest.raises(ValueError, match=r"last\.pt is of another run: seed 1, given 2"):
        checkpoint.check_same_run(saved, {"seed": 2}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="weights alone"):
        checkpoint.check_same_run({"model": {}}, {}, tmp_path / "last.pt")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pvt_v2_b0.pth"
    model = models.pvt_v2_b0(num_classes=5)
    torch.save({"model": model.state_dict()}, path)
    return path, model.state_dict()


def test_a_backbone_takes_a_classifiers_weights(classifier):
    path, weights = classifier
    model = nn.ModuleDict({"backbone": models.pvt_v2_b0(features_only=True)})
    loaded = checkpoint.load_backbone(model, "pvt_v2_b0", path)
    assert loaded == Loaded("", ["head.weight", "head.bias"], [])
    for name, value in model["backbone"].state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_head_for_other_classes_stays_as_it_is(classifier):
    path, weights = classifier
    model = models.pvt_v2_b0(num_classes=3)
    head = model.head.weight.clone()
    heads = ["head.weight", "head.bias"]
    assert checkpoint.load_backbone(model, "pvt_v2_b0", path) == Loaded("", heads, heads)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.patch_embed1.proj.weight, weights["patch_embed1.proj.weight"])
    same = models.pvt_v2_b0(num_classes=5)
    assert not checkpoint.load_backbone(same, "pvt_v2_b0", path)
    assert torch.equal(same.head.weight, weights["head.weight"])


@pytest.mark.parametrize("features_only", [False, True])
def test_weights_of_another_backbone_are_summarised(features_only, classifier):
    tiny = models.pvt_tiny(features_only=features_only)
    keys = len(tiny.state_dict())
    with pytest.raises(ValueError) as raised:
        checkpoint.load_backbone(tiny, "pvt_tiny", classifier[0])
    message = str(raised.value)
    assert "pvt_v2_b0.pth does not fit: " in message
    assert message.endswith("; accepted weights of pvt_tiny")
    assert re.search(rf"\d+ of {keys} keys are missing \(.*, .*, .* and \d+ more\)", message)
    assert re.search(r"\d+ are unknown \(.*, .*, .* and \d+ more\)", message)
    assert "patch_embed1.proj.weight is (32, 3, 7, 7), accepted (64, 3, 4, 4)" in message
    assert "head" not in message and "\n" not in message and len(message) < 800


def test_a_run_of_another_system_or_backbone_is_named(tmp_path):
    state = dict.fromkeys(checkpoint.KEYS, 0) | {"model": {"w": torch.zeros(1)}}
    torch.save(state | {"system": "retinanet", "backbone": "pvt_tiny"}, tmp_path / "last.pt")
    message = "is of retinanet on pvt_tiny, accepted classification on pvt_v2_b0"
    with pytest.raises(ValueError, match=message):
        checkpoint.load_backbone(models.pvt_v2_b0(), "pvt_v2_b0", tmp_path / "last.pt")
