"""timm's models, patched."""

import pytest
import torch

from .checks import assert_patch_keeps_results, with_lively_weights

timm = pytest.importorskip("timm", reason="timm is not installed")

# modules that are swapped and skipped: the networks of linear SRA, whose ReLU these tests replace
MODELS = {
    "pvt_v2_b0": (16, 0),
    "pvt_v2_b2": (32, 0),
    "pvt_v2_b2_li": (16, 16),
    "twins_svt_small": (9 + 18, 0),
}


@pytest.mark.parametrize(
    ("dtype", "size", "training"),
    [
        (torch.float32, (2, 3, 64, 68), True),
        (torch.bfloat16, (1, 3, 68, 84), False),
    ],
    ids=["fp32", "bf16"],
)
@pytest.mark.parametrize("name", MODELS)
def test_results(name, dtype, size, training):
    model = timm.create_model(name, num_classes=10, drop_path_rate=0.1)
    model = with_lively_weights(model).to(dtype).train(training)
    assert_patch_keeps_results(model, torch.randn(size).to(dtype), *MODELS[name])
