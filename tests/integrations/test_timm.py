"""timm's models, patched."""

import copy

import pytest
import torch
from torch import nn

import pvt_kernels

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


@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 3), (0, 4), (2, 5)], ids=str)
def test_tokens_of_any_rank_without_a_convolution(shape):
    """As of a network on pooled tokens, or on maps with the channels last."""
    mlp = timm.layers.Mlp(32, 48)
    other = copy.deepcopy(mlp)
    assert pvt_kernels.patch(mlp).swapped == [""]
    results = []
    for one in (mlp, other):
        torch.manual_seed(0)
        x = torch.randn(*shape, 32, requires_grad=True)
        out = one(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_a_norm_within_a_network_that_comes_later_is_called():
    mlp = timm.layers.Mlp(32, 48)
    x = torch.randn(1, 6, 32)
    assert pvt_kernels.patch(mlp).swapped == [""]
    mlp.norm = nn.LayerNorm(48)
    actual = mlp(x)
    pvt_kernels.unpatch(mlp)
    assert torch.equal(actual, mlp(x))
