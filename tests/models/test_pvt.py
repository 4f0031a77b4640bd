"""PVT against transformers' Pvt with the same weights, and its position embeddings."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pvt_kernels import models

STAGE_RENAMES = [
    (r"^pvt\.encoder\.patch_embeddings\.(\d)\.projection", r"patch_embed\1.proj"),
    (r"^pvt\.encoder\.patch_embeddings\.(\d)\.layer_norm", r"patch_embed\1.norm"),
    (r"^pvt\.encoder\.patch_embeddings\.(\d)\.position_embeddings", r"pos_embed\1"),
    (r"^pvt\.encoder\.patch_embeddings\.\d\.cls_token", "cls_token"),
    (r"^pvt\.encoder\.block\.(\d)\.", r"block\1."),
    (r"^pvt\.encoder\.layer_norm", "norm"),
    (r"^classifier", "head"),
    (r"layer_norm_([12])", r"norm\1"),
    (r"attention\.self\.query", "attn.q"),
    (r"attention\.self\.sequence_reduction", "attn.sr"),
    (r"attention\.self\.layer_norm", "attn.norm"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"mlp\.dense", "mlp.fc"),
]


def from_transformers(state_dict):
    """Translate the keys of PvtForImageClassification, which counts stages from 0."""
    out = {}
    for key, value in state_dict.items():
        if ".value." in key:
            continue
        if ".key." in key:
            value = torch.cat([value, state_dict[key.replace(".key.", ".value.")]])
            key = key.replace("attention.self.key", "attn.kv")
        for pattern, replacement in STAGE_RENAMES:
            key = re.sub(pattern, replacement, key)
        key = re.sub(
            r"^(block|patch_embed|pos_embed)(\d)", lambda m: m[1] + str(int(m[2]) + 1), key
        )
        out[key] = value
    return out


@pytest.fixture(scope="module")
def reference():
    """transformers' PVT-Tiny with random weights, norms and biases included."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.PvtConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 320, 512],
        num_attention_heads=[1, 2, 5, 8],
        mlp_ratios=[8, 8, 4, 4],
        sequence_reduction_ratios=[8, 4, 2, 1],
        patch_sizes=[4, 2, 2, 2],
        strides=[4, 2, 2, 2],
        qkv_bias=True,
        num_labels=10,
    )
    model = transformers.PvtForImageClassification(config).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            # transformers uses 1e-6 throughout, the original code only outside these
            if isinstance(module, nn.LayerNorm) and ("embeddings" in name or ".self." in name):
                module.eps = 1e-5
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


# transformers reads its position embeddings in the image's own shape, without interpolation: it
# agrees at img_size, and on other shapes with as many patches in every stage, told ours as img_size
@pytest.mark.parametrize("size", [(224, 224), (32, 1568)])
def test_matches_transformers(reference, size):
    model = models.pvt_tiny(num_classes=10, img_size=size).eval()
    model.load_state_dict(from_transformers(reference.state_dict()), strict=True)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x).logits, rtol=1e-5, atol=1e-5)


def test_pyramid_matches_transformers_up_to_the_class_token(reference):
    model = models.pvt_tiny(features_only=True).eval()
    model.load_state_dict(from_transformers(reference.state_dict()), strict=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = model(x)
        hidden = reference(x, output_hidden_states=True).hidden_states
    # two blocks a stage; stage 4 has a class token there, and so other outputs
    for tokens, feature_map in zip(hidden[1:6:2], maps, strict=False):
        torch.testing.assert_close(
            feature_map.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5
        )


def with_interpolated_positions(state_dict, size):
    """The checkpoint for img_size 224 turned into one for `size`."""
    out = dict(state_dict)
    for stage, stride in enumerate((4, 8, 16, 32), start=1):
        pos_embed = state_dict[f"pos_embed{stage}"]
        cls, grid = (pos_embed[:, :1], pos_embed[:, 1:]) if stage == 4 else (None, pos_embed)
        side = 224 // stride
        image = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        image = F.interpolate(image, (size[0] // stride, size[1] // stride), mode="bilinear")
        grid = image.permute(0, 2, 3, 1).flatten(1, 2)
        out[f"pos_embed{stage}"] = grid if cls is None else torch.cat([cls, grid], dim=1)
    return out


# 448 x 448 has 56 * 56 patches in stage 2, as many as stage 1 has at 224 x 224; 112 x 448 as many
# in stage 1 itself; 225 x 230 has the very grids of 224 x 224
@pytest.mark.parametrize("size", [(448, 448), (112, 448), (64, 160), (97, 130), (225, 230)])
@pytest.mark.parametrize("features_only", [False, True])
def test_positions_are_interpolated_to_other_grids(size, features_only):
    torch.manual_seed(0)
    model = models.pvt_tiny(num_classes=10).eval()
    with torch.no_grad():
        for stage in range(1, 5):  # beyond round-off against the tokens
            getattr(model, f"pos_embed{stage}").normal_()
    expected_model = models.pvt_tiny(
        num_classes=10, features_only=features_only, img_size=size
    ).eval()
    expected_model.load_state_dict(with_interpolated_positions(model.state_dict(), size))
    if features_only:
        pyramid = models.pvt_tiny(features_only=True).eval()
        pyramid.load_state_dict(model.state_dict())
        model = pyramid
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected_model(x), rtol=1e-5, atol=1e-5)


def test_positions_matter():
    model = models.pvt_tiny(num_classes=10).eval()
    x = torch.randn(1, 3, 112, 448)
    with torch.no_grad():
        before = model(x)
        model.pos_embed1.normal_()
        assert not torch.allclose(model(x), before)


def test_positions_follow_img_size():
    model = models.pvt_tiny(img_size=(64, 96))
    grids = [(16, 24), (8, 12), (4, 6), (2, 3)]
    counts = [getattr(model, f"pos_embed{stage}").shape[1] for stage in range(1, 5)]
    assert counts == [h * w for h, w in grids[:3]] + [2 * 3 + 1]


def test_img_size_too_small():
    with pytest.raises(ValueError, match=r"img_size must be at least 32, got \(64, 31\)"):
        models.pvt_tiny(img_size=(64, 31))


def test_class_token_exists_in_the_classifier_only():
    with torch.device("meta"):
        assert hasattr(models.pvt_tiny(), "cls_token")
        assert not hasattr(models.pvt_tiny(features_only=True), "cls_token")
