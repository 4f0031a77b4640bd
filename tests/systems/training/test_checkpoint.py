"""Checkpoints: whole or not there, readable, and named when they don't fit."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from pvt_kernels import models
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
    checkpoint.save({"step": 1}, path)

    def fail(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save({"step": 2}, path)
    assert checkpoint.load(path) == {"step": 1}
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


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing checkpoint .*none\.pt"):
        checkpoint.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"broken checkpoint .*text\.pt"):
        checkpoint.load(tmp_path / "text.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: holds a list"):
        checkpoint.load(tmp_path / "list.pt")


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
    assert checkpoint.load_backbone(model, path) == []
    for name, value in model["backbone"].state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_head_for_other_classes_stays_as_it_is(classifier):
    path, weights = classifier
    model = models.pvt_v2_b0(num_classes=3)
    head = model.head.weight.clone()
    assert checkpoint.load_backbone(model, path) == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.patch_embed1.proj.weight, weights["patch_embed1.proj.weight"])
    same = models.pvt_v2_b0(num_classes=5)
    assert checkpoint.load_backbone(same, path) == []
    assert torch.equal(same.head.weight, weights["head.weight"])


def test_weights_of_another_backbone_are_an_error(classifier):
    with pytest.raises(ValueError, match=r"pvt_v2_b0\.pth does not fit the backbone"):
        checkpoint.load_backbone(models.pvt_tiny(), classifier[0])
