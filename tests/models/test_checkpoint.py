"""Checkpoints as training scripts write them: what is stripped, left out and refused."""

import argparse
import logging
import pathlib
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from pvt_kernels import models
from pvt_kernels.models import Loaded

HEAD = ["head.weight", "head.bias"]


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return models.pvt_v2_b0(num_classes=3)


def equal(model, source, but=()):
    weights = source.state_dict()
    return all(torch.equal(v, weights[k]) for k, v in model.state_dict().items() if k not in but)


def load(content, path, **options):
    torch.save(content, path / "file.pth")
    model = models.pvt_v2_b0(**{"num_classes": 3} | options)
    return model, models.load_checkpoint(model, path / "file.pth")


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


# what the original code's main.py saves beside the weights
TRAINING = {
    "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 1e-3}]},
    "lr_scheduler": {"last_epoch": 3, "best": np.float64(0.5), "seen": np.int64(7)},
    "epoch": 3,
    "max_accuracy": np.float32(71.5),
    "args": argparse.Namespace(
        lr=1e-3, output_dir=pathlib.Path("out"), config=OrderedDict(a=[1, (2, None)]), dist=False
    ),
}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights, **TRAINING},
        lambda weights: {"state_dict": weights, "meta": {"epoch": 12, "classes": ("a", "b")}},
        lambda weights: {"model_state_dict": weights, "loss": 0.5},
        lambda weights: {"state_dict": {"model": weights}, "epoch": 1},
        lambda weights: {"model": OrderedDict(weights), "scaler": {"scale": 65536.0}},
    ],
)
def test_what_a_training_script_saves_is_loaded(wrap, source, tmp_path, caplog):
    model, loaded = load(wrap(source.state_dict()), tmp_path)
    assert not loaded and loaded == Loaded() and str(loaded) == ""
    assert equal(model, source) and not caplog.records


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "encoder.", "module.backbone.", "model.encoder.pvt."]
)
@pytest.mark.parametrize("wrapper", [None, "model"])
def test_prefixes_are_stripped_and_said(prefix, wrapper, source, tmp_path, caplog):
    weights = prefixed(source.state_dict(), prefix)
    model, loaded = load({wrapper: weights} if wrapper else weights, tmp_path)
    assert equal(model, source) and loaded == Loaded(prefix)
    message = f"taken without '{prefix}' in front of the names"
    assert str(loaded) == message and message in caplog.text and "file.pth" in caplog.text


@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_compiled_models_have_the_names_of_others(prefix, source, tmp_path):
    model, loaded = load(prefixed(source.state_dict(), prefix), tmp_path)
    assert equal(model, source) and loaded.prefix == prefix.replace("_orig_mod.", "")
    inside = {
        re.sub(r"^(block1\.0)", r"\1._orig_mod", k): v for k, v in source.state_dict().items()
    }
    model, loaded = load(inside, tmp_path)
    assert equal(model, source) and not loaded


@pytest.mark.parametrize("features_only", [False, True])
def test_a_detectors_backbone_is_taken_and_the_rest_said(features_only, source, tmp_path):
    weights = prefixed(models.pvt_v2_b0(features_only=True).state_dict(), "backbone.")
    weights |= {"neck.convs.0.weight": torch.zeros(1), "bbox_head.weight": torch.zeros(1)}
    model, loaded = load({"state_dict": weights}, tmp_path, features_only=features_only)
    rest = ["neck.convs.0.weight", "bbox_head.weight"]
    assert loaded == Loaded("backbone.", rest, [] if features_only else HEAD)
    name = "block4.1.mlp.fc2.weight"
    assert torch.equal(model.state_dict()[name], weights[f"backbone.{name}"])


def test_a_head_for_other_classes_is_left_out_and_said(source, tmp_path, caplog):
    torch.manual_seed(2)
    model = models.pvt_v2_b0(num_classes=5)
    head = model.head.weight.clone()
    torch.save({"model": prefixed(source.state_dict(), "module.")}, tmp_path / "file.pth")
    with caplog.at_level(logging.WARNING, logger="pvt_kernels"):
        loaded = models.load_checkpoint(model, tmp_path / "file.pth")
    assert loaded == Loaded("module.", [f"module.{key}" for key in HEAD], HEAD)
    assert equal(model, source, but=HEAD) and torch.equal(model.head.weight, head)
    assert (
        "taken without 'module.' in front of the names; left out module.head.weight, "
        "module.head.bias; fresh in the model head.weight, head.bias" in caplog.text
    )


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True}])
def test_a_model_without_a_head_needs_none(options, source, tmp_path):
    model, loaded = load(source.state_dict(), tmp_path, **options)
    assert equal(model, source) and loaded == Loaded("", HEAD)


@pytest.mark.parametrize("features_only", [False, True])
def test_pvts_pyramid_and_classifier_exchange_weights(features_only, tmp_path):
    one = models.pvt_tiny(features_only=features_only)
    other = models.pvt_tiny(features_only=not features_only)
    torch.save(one.state_dict(), tmp_path / "file.pth")
    loaded = models.load_checkpoint(other, tmp_path / "file.pth")
    names = {"head.weight", "head.bias", "norm.weight", "norm.bias", "cls_token"}
    assert set(loaded.left_out) == (set() if features_only else names)
    assert set(loaded.fresh) == (names if features_only else set())
    assert equal(other, one, but=loaded.fresh)


def test_timms_weights_are_translated(tmp_path):
    timm = pytest.importorskip("timm")
    reference = timm.create_model("pvt_v2_b0", num_classes=3).eval()
    for prefix in ("", "module."):
        model, loaded = load(prefixed(reference.state_dict(), prefix), tmp_path)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), reference(x), rtol=1e-5, atol=1e-5)
        assert loaded == Loaded(prefix)


def test_other_modules_are_loaded_too(source, tmp_path):
    detector = nn.ModuleDict({"backbone": models.pvt_v2_b0(features_only=True)})
    torch.save(prefixed(detector.state_dict(), "module."), tmp_path / "file.pth")
    twin = nn.ModuleDict({"backbone": models.pvt_v2_b0(features_only=True)})
    assert models.load_checkpoint(twin, tmp_path / "file.pth") == Loaded("module.")
    assert equal(twin, detector)


class Code:
    """Would run on unpickling."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("head.bias"), r"1 of \d+ keys are missing \(head\.bias\)"),
        (lambda w: w.pop("norm1.weight"), r"1 of \d+ keys are missing \(norm1\.weight\)"),
        (lambda w: w.update(extra=torch.zeros(1)), r"1 are unknown \(extra\)"),
        (
            lambda w: w.update({"norm1.weight": torch.zeros(7)}),
            r"1 have another shape \(norm1\.weight is \(7,\), accepted \(32,\)\)",
        ),
        (
            lambda w: w.update({"head.weight": torch.zeros(3, 9)}),
            r"1 have another shape \(head\.weight is \(3, 9\), accepted \(3, 256\)\)",
        ),
        (
            lambda w: w.update({f"ema.{k}": v for k, v in w.items()}),
            r"\d+ are unknown \(ema\.patch",
        ),
        (lambda w: w.update(note="text"), r"holds no weights"),
        (lambda w: w.clear(), r"holds no weights"),
        (
            lambda w: w.update(code=Code()),
            r"it holds a (builtins\.)?print, which is not read",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(damage, message, source, tmp_path):
    weights = dict(source.state_dict())
    damage(weights)
    torch.save(weights, tmp_path / "file.pth")
    model = models.pvt_v2_b0(num_classes=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as raised:
        models.load_checkpoint(model, tmp_path / "file.pth")
    assert "file.pth" in str(raised.value) and "\n" not in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_two_models_in_a_file_are_not_chosen_between(source, tmp_path):
    weights = prefixed(source.state_dict(), "student.") | prefixed(source.state_dict(), "teacher.")
    with pytest.raises(ValueError, match=r"under each of student\., teacher\.; accepted a file"):
        load(weights, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing checkpoint .*none\.pth"):
        models.load_checkpoint(models.pvt_v2_b0(), tmp_path / "none.pth")
