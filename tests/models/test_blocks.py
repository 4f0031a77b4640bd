"""Stochastic depth and initialisation."""

import math

import pytest
import torch
from torch import nn

from pvt_kernels import models
from pvt_kernels.models.blocks import DropPath


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    samples, p = 20_000, 0.3
    out = DropPath(p)(torch.ones(samples, 2, 3))
    per_sample = out[:, 0, 0]
    assert torch.equal(out, per_sample[:, None, None].expand_as(out))
    kept = per_sample != 0
    torch.testing.assert_close(per_sample[kept], torch.full((int(kept.sum()),), 1 / (1 - p)))
    # four standard deviations of a binomial proportion
    assert kept.float().mean().item() == pytest.approx(
        1 - p, abs=4 * math.sqrt(p * (1 - p) / samples)
    )


@pytest.mark.parametrize("p", [0.0, 0.9])
def test_drop_path_is_the_identity_in_evaluation(p):
    x = torch.randn(8, 4)
    assert DropPath(p).eval()(x) is x
    assert (DropPath(p)(x) is x) == (p == 0)


@pytest.mark.parametrize("name", ["pvt_small", "pvt_v2_b2"])
def test_drop_path_rate_grows_linearly_over_the_blocks(name):
    with torch.device("meta"):
        model = models.create(name, drop_path_rate=0.3)
    rates = [module.p for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx(torch.linspace(0, 0.3, 16).tolist())


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_dropout_rates_reach_their_layers(name):
    with torch.device("meta"):
        model = models.create(name, drop_rate=0.1, attn_drop_rate=0.2)
    block = model.block3[1]
    assert block.attn.attn_drop.p == 0.2
    assert block.attn.proj_drop.p == block.mlp.drop.p == 0.1
    if name == "pvt_tiny":
        assert model.pos_drop.p == 0.1


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_linear"])
def test_initialisation_is_the_originals(name):
    torch.manual_seed(0)
    model = models.create(name)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # five standard errors of a small layer's: each PyTorch draws other numbers
            error = max(0.05, 5 / math.sqrt(2 * module.weight.numel()))
            assert module.weight.std().item() == pytest.approx(0.02, rel=error), module_name
            assert not module.bias.any(), module_name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), module_name
            assert not module.bias.any(), module_name
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            fan_out = module.weight[:, 0].numel() // module.groups
            if "_v2_" in name:
                std = math.sqrt(2 / fan_out)
                assert not module.bias.any(), module_name
            else:
                std = 1 / math.sqrt(3 * fan_in)  # PyTorch's default
            assert module.weight.std().item() == pytest.approx(std, rel=0.1), module_name
    if name == "pvt_tiny":
        for parameter in (model.cls_token, model.pos_embed1, model.pos_embed4):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_norms_have_the_originals_eps(name):
    with torch.device("meta"):
        model = models.create(name)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            inner = "patch_embed" in module_name or ".attn." in module_name
            assert module.eps == (1e-5 if inner else 1e-6), module_name


def test_no_weight_decay_is_the_originals():
    with torch.device("meta"):
        assert models.pvt_tiny().no_weight_decay() == {"cls_token"}
        assert models.pvt_v2_b0().no_weight_decay() == {
            "pos_embed1",
            "pos_embed2",
            "pos_embed3",
            "pos_embed4",
            "cls_token",
        }
