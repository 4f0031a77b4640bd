"""The models under timm's create_model, and imports without a working timm."""

import subprocess
import sys

import pytest
import torch

from pvt_kernels import models


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


def test_every_model_is_registered(timm):
    expected = {name.replace("pvt_", "pvtk_") for name in models.names()}
    assert set(timm.list_models("pvtk_*")) == expected


def test_timms_own_models_stay(timm):
    assert timm.models.model_entrypoint("pvt_v2_b0").__module__ == "timm.models.pvt_v2"


def test_create_model_builds_a_classifier(timm):
    model = timm.create_model("pvtk_v2_b0", num_classes=10, drop_path_rate=0.1, in_chans=1)
    assert isinstance(model, models.PyramidVisionTransformerV2)
    assert model.get_classifier().out_features == 10
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["pvtk_tiny", "pvtk_v2_b0"])
def test_create_model_builds_a_pyramid(timm, name):
    model = timm.create_model(name, features_only=True)
    maps = model(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == model.feature_info.reduction() == [4, 8, 16, 32]


def test_data_config_is_resolved(timm):
    model = timm.create_model("pvtk_tiny", pretrained_cfg_overlay={"crop_pct": 0.95})
    config = timm.data.resolve_model_data_config(model)
    assert config["crop_pct"] == 0.95
    assert config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert timm.create_model("pvtk_tiny").default_cfg["crop_pct"] == 0.9


def test_checkpoint_path_is_loaded(timm, tmp_path):
    source = models.pvt_v2_b0(num_classes=10)
    torch.save({"model": source.state_dict()}, tmp_path / "b0.pth")
    path = str(tmp_path / "b0.pth")
    for features_only in (False, True):
        model = timm.create_model(
            "pvtk_v2_b0", num_classes=10, features_only=features_only, checkpoint_path=path
        )
        assert torch.equal(model.block4[0].mlp.fc1.weight, source.block4[0].mlp.fc1.weight)


def test_pretrained_is_refused(timm):
    with pytest.raises(ValueError, match="pretrained must be False for pvtk_tiny: no weights"):
        timm.create_model("pvtk_tiny", pretrained=True)


IMPORT = """
import sys, warnings
{prelude}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pvt_kernels.models
print([str(w.message) for w in caught if "timm" in str(w.message)])
print(pvt_kernels.models.create("pvt_v2_b0").num_classes)
"""


def import_models_after(prelude):
    return subprocess.run(
        [sys.executable, "-c", IMPORT.format(prelude=prelude)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_broken_timm_warns_and_breaks_nothing(tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist')")
    warned, num_classes = import_models_after(f"sys.path.insert(0, {str(tmp_path)!r})").splitlines()
    assert "not registered with timm" in warned
    assert "RuntimeError: operator nms does not exist" in warned
    assert num_classes == "1000"


def test_without_timm_nothing_is_said():
    assert import_models_after("sys.modules['timm'] = None").splitlines() == ["[]", "1000"]
