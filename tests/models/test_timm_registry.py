"""The models under timm's create_model, and imports without a working timm."""

import copy
import itertools
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


@pytest.fixture(scope="module")
def pair(timm):
    """timm's own PVTv2-B0 and this package's, with the same weights."""
    torch.manual_seed(0)
    theirs = timm.create_model("pvt_v2_b0", num_classes=10, in_chans=4).eval()
    ours = timm.create_model("pvtk_v2_b0", num_classes=10, in_chans=4).eval()
    ours.load_state_dict(timm_registry().checkpoint_filter_fn(theirs.state_dict(), ours))
    return theirs, ours


def timm_registry():
    from pvt_kernels.models import timm_registry

    return timm_registry


IMAGES = torch.rand(2, 4, 70, 96, generator=torch.Generator().manual_seed(0))
CALLS = {
    "forward": lambda m: m(IMAGES),
    "forward_features": lambda m: m.forward_features(IMAGES),
    "forward_head": lambda m: m.forward_head(m.forward_features(IMAGES)),
    "pre_logits": lambda m: m.forward_head(m.forward_features(IMAGES), pre_logits=True),
    "intermediates": lambda m: m.forward_intermediates(IMAGES),
    "the last two": lambda m: m.forward_intermediates(IMAGES, indices=2),
    "some": lambda m: m.forward_intermediates(IMAGES, indices=[0, -2], intermediates_only=True),
    "stop early": lambda m: m.forward_intermediates(IMAGES, indices=[1], stop_early=True),
    "norm": lambda m: m.forward_intermediates(IMAGES, norm=True, output_fmt="NCHW"),
    "classifier": lambda m: m.get_classifier().weight,
}


def compare(ours, theirs):
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            compare(*pair)
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("call", CALLS)
def test_calls_give_what_timms_own_gives(call, pair):
    theirs, ours = pair
    with torch.no_grad():
        compare(CALLS[call](ours), CALLS[call](theirs))


@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": ""},
        {"num_classes": 0},
        {"num_classes": 0, "global_pool": ""},
        {"num_classes": 7, "global_pool": "avg"},
    ],
)
def test_classifiers_are_reset_as_timms_own(options, timm, pair):
    theirs, ours = (copy.deepcopy(model) for model in pair)
    reset = {"num_classes": 0} | options
    for model in (theirs, ours):
        model.reset_classifier(**reset)
    assert ours.num_classes == theirs.num_classes == reset["num_classes"]
    with torch.no_grad():
        assert ours(IMAGES).shape == theirs(IMAGES).shape
        if not reset["num_classes"]:
            compare(ours(IMAGES), theirs(IMAGES))
    if options.get("global_pool") is None or options.get("num_classes") is not None:
        built = [timm.create_model(n, in_chans=4, **options) for n in ("pvt_v2_b0", "pvtk_v2_b0")]
        shapes = [model.eval()(IMAGES).shape for model in built]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("indices", [None, (0, 1, 2, 3), (1, 3), (0, 1), (2,), (-2, -1), 2])
def test_features_are_timms_own(indices, timm, pair):
    theirs, ours = pair
    options = {} if indices is None else {"out_indices": indices}
    options |= {"in_chans": 4, "features_only": True}
    reference = timm.create_model("pvt_v2_b0", **options).eval()
    known = {k.replace("stages.", "stages_", 1): v for k, v in theirs.state_dict().items()}
    reference.load_state_dict({k: v for k, v in known.items() if k in reference.state_dict()})
    pyramid = timm.create_model("pvtk_v2_b0", **options).eval()
    pyramid.load_state_dict(ours.state_dict())
    for query in ("channels", "reduction"):
        assert getattr(pyramid.feature_info, query)() == getattr(reference.feature_info, query)()
    assert len(pyramid.feature_info) == len(reference.feature_info) == 4
    counts = [sum(p.numel() for p in model.parameters()) for model in (pyramid, reference)]
    assert counts[0] == counts[1]
    with torch.no_grad():
        compare(pyramid(IMAGES), reference(IMAGES))


def test_intermediate_layers_are_pruned_as_timms_own(pair):
    theirs, ours = (copy.deepcopy(model) for model in pair)
    assert ours.prune_intermediate_layers([0, 2]) == theirs.prune_intermediate_layers([0, 2])
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1] and ours.num_features == 160
    with torch.no_grad():
        compare(ours(IMAGES), theirs(IMAGES))


@pytest.mark.parametrize("name", ["pvtk_tiny", "pvtk_v2_b0"])
def test_checkpointed_gradients_are_the_same(name, timm):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).train()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(IMAGES[:, :3]).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", ["pvtk_tiny", "pvtk_v2_b0"])
def test_learning_rates_decay_by_depth(name, timm):
    from timm.optim import param_groups_layer_decay

    model = timm.create_model(name, num_classes=3)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert scales["head.weight"] == 1.0
    depths = [scales[f"block{i}.0.attn.q.weight"] for i in range(1, 5)]
    assert all(b == 2 * a for a, b in itertools.pairwise(depths))
    assert scales["patch_embed1.proj.weight"] == min(scales.values())
    assert scales["patch_embed3.proj.weight"] == depths[2]
    if name == "pvtk_tiny":
        assert scales["pos_embed2"] == depths[1]


def test_rates_are_timms(timm):
    model = timm.create_model(
        "pvtk_v2_b0", drop_rate=0.3, proj_drop_rate=0.2, drop_path_rate=0.1, attn_drop_rate=0.4
    )
    assert model.head_drop.p == 0.3 and model.block1[0].mlp.drop.p == 0.2
    assert model.block4[1].drop_path.p == pytest.approx(0.1)


def test_what_create_model_passes_is_taken(timm):
    model = timm.create_model(
        *("pvtk_v2_b0", False), scriptable=True, exportable=True, no_jit=True,
        num_classes=None, drop_rate=None, global_pool="avg", dtype=torch.bfloat16,
    )  # fmt: skip
    assert model.head.weight.dtype == torch.bfloat16 and model.num_classes == 1000
    with torch.device("meta"):
        assert timm.create_model("pvtk_v2_b0", features_only=True).feature_info.channels()
    assert timm.create_model("pvtk_v2_b0", device="meta").head.weight.is_meta
    overlay = timm.create_model("pvtk_v2_b0", pretrained_cfg_overlay={"num_classes": 5})
    assert overlay.num_classes == 5 and overlay.default_cfg["classifier"] == "head"
    assert timm.create_model("pvtk_v2_b0", features_only=True, feature_cls="getter").features_only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "max"}, r"global_pool must be one of \('avg', ''\), got 'max'"),
        ({"features_only": True, "out_indices": (0, 4)}, "out_indices must be some of the stages"),
        ({"features_only": True, "out_indices": ()}, r"out_indices must be .*got \(\)"),
        ({"features_only": True, "output_stride": 16}, "output_stride must be 32 .*got 16"),
        ({"features_only": True, "feature_cls": "fx"}, "feature_cls must be one of"),
        ({"out_indices": (0,)}, "out_indices is of features_only=True"),
    ],
)
def test_what_the_models_have_not_is_refused(options, message, timm):
    with pytest.raises(ValueError, match=message):
        timm.create_model("pvtk_v2_b0", **options)


@pytest.mark.parametrize("features_only", [False, True])
def test_a_file_is_loaded_as_pretrained(features_only, timm, tmp_path):
    source = models.pvt_v2_b0(num_classes=1000)
    torch.save({"model": source.state_dict()}, tmp_path / "b0.pth")
    model = timm.create_model(
        "pvtk_v2_b0",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "b0.pth")},
        num_classes=5,
        in_chans=1,
        features_only=features_only,
    )
    assert torch.equal(model.block4[0].mlp.fc1.weight, source.block4[0].mlp.fc1.weight)
    summed = source.patch_embed1.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed1.proj.weight, summed)


@pytest.mark.parametrize("name", ["pvtk_tiny", "pvtk_v2_b0"])
@pytest.mark.parametrize("depth", [5, 3])
def test_an_encoder_of_segmentation_models_pytorch(name, depth, timm):
    smp = pytest.importorskip(
        "segmentation_models_pytorch",
        reason="not installed here: pip install --no-deps segmentation-models-pytorch",
    )
    channels = (64, 32, 16, 16, 8)[:depth]
    model = smp.Unet(
        f"tu-{name}", encoder_weights=None, encoder_depth=depth, decoder_channels=channels,
        in_channels=4, classes=3,
    )  # fmt: skip
    out = model(torch.randn(2, 4, 64, 96))
    assert out.shape == (2, 3, 64, 96)
    out.square().sum().backward()
    missing = [k for k, p in model.encoder.named_parameters() if p.grad is None]
    assert missing == []


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
