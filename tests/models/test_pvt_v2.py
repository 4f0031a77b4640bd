"""PVTv2 against timm's and transformers' with the same weights."""

import re

import pytest
import torch
from torch import nn

from pvt_kernels import models

TIMM_NAMES = {
    "pvt_v2_b0": "pvt_v2_b0",
    "pvt_v2_b2": "pvt_v2_b2",
    "pvt_v2_b2_linear": "pvt_v2_b2_li",
}


def randomize(model):
    """Move every parameter, so that norms and biases differ from their initial 1 and 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def from_timm(state_dict):
    """Translate the keys of timm's pvt_v2, which counts stages from 0."""
    out = {}
    for key, value in state_dict.items():
        key = re.sub(r"^patch_embed\.", "patch_embed1.", key)
        key = re.sub(
            r"^stages\.(\d)\.(downsample|blocks|norm)",
            lambda m: (
                {"downsample": "patch_embed", "blocks": "block", "norm": "norm"}[m[2]]
                + str(int(m[1]) + 1)
            ),
            key,
        )
        out[key.replace("mlp.dwconv", "mlp.dwconv.dwconv")] = value
    return out


@pytest.fixture(scope="module", params=TIMM_NAMES)
def timm_pair(request):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model(TIMM_NAMES[request.param], num_classes=10).eval()
    randomize(reference)
    return request.param, reference


@pytest.mark.parametrize("size", [(224, 224), (61, 99), (130, 75)])
def test_matches_timm(timm_pair, size):
    name, reference = timm_pair
    state_dict = from_timm(reference.state_dict())
    model = models.create(name, num_classes=10).eval()
    model.load_state_dict(state_dict, strict=True)
    pyramid = models.create(name, features_only=True).eval()
    pyramid.load_state_dict(state_dict, strict=True)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-5, atol=1e-5)
        maps = reference.forward_intermediates(x, intermediates_only=True)
        torch.testing.assert_close(pyramid(x), maps, rtol=1e-5, atol=2e-5)


TRANSFORMERS_RENAMES = [
    (r"^pvt_v2\.encoder\.layers\.(\d)\.patch_embedding\.", r"patch_embed\1."),
    (r"^pvt_v2\.encoder\.layers\.(\d)\.blocks\.", r"block\1."),
    (r"^pvt_v2\.encoder\.layers\.(\d)\.layer_norm", r"norm\1"),
    (r"^classifier", "head"),
    (r"layer_norm_([12])", r"norm\1"),
    (r"layer_norm", "norm"),
    (r"attention\.query", "attn.q"),
    (r"attention\.spatial_reduction", "attn.sr"),
    (r"attention\.", "attn."),
    (r"mlp\.dense", "mlp.fc"),
]


def from_transformers(state_dict):
    """Translate the keys of PvtV2ForImageClassification, which counts stages from 0."""
    out = {}
    for key, value in state_dict.items():
        if ".value." in key:
            continue
        if ".key." in key:
            value = torch.cat([value, state_dict[key.replace(".key.", ".value.")]])
            key = key.replace("attention.key", "attn.kv")
        for pattern, replacement in TRANSFORMERS_RENAMES:
            key = re.sub(pattern, replacement, key)
        key = re.sub(r"^(block|patch_embed|norm)(\d)", lambda m: m[1] + str(int(m[2]) + 1), key)
        out[key] = value
    return out


@pytest.mark.parametrize("linear", [False, True])
def test_matches_transformers(linear):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.PvtV2Config(linear_attention=linear, num_labels=10)
    if linear:
        config.depths, config.hidden_sizes = [3, 4, 6, 3], [64, 128, 320, 512]
    reference = transformers.PvtV2ForImageClassification(config).eval()
    randomize(reference)
    for name, module in reference.named_modules():
        # transformers uses 1e-6 throughout, the original code only outside these
        if isinstance(module, nn.LayerNorm) and re.search(r"patch_embedding|attention", name):
            module.eps = 1e-5
    model = models.create("pvt_v2_b2_linear" if linear else "pvt_v2_b0", num_classes=10).eval()
    model.load_state_dict(from_transformers(reference.state_dict()), strict=True)
    x = torch.randn(2, 3, 97, 130)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x).logits, rtol=1e-5, atol=1e-5)
