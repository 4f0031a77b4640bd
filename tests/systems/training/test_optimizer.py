"""Which parameters AdamW decays, and how fast it moves them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pvt_kernels import models, systems
from pvt_kernels.systems.training.optimizer import make_optimizer, parameter_groups, set_rate

RECIPE = replace(systems.load("classification").recipes[0], weight_decay=0.05, learning_rate=1e-3)


class Detector(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.backbone = models.create(name, features_only=True)
        self.neck = nn.Conv2d(64, 8, 1)
        self.norm = nn.GroupNorm(2, 8)


def names_of(model, group):
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_norms_biases_and_positions_do_not_decay(name):
    with torch.device("meta"):
        model = models.create(name)
    groups = {g["weight_decay"]: names_of(model, g) for g in parameter_groups(model, RECIPE)}
    assert set(groups) == {0.0, 0.05}
    assert groups[0.0] | groups[0.05] == {name for name, _ in model.named_parameters()}
    modules = dict(model.named_modules())
    for parameter in groups[0.0]:
        owner, _, last = parameter.rpartition(".")
        assert (
            last == "bias"
            or isinstance(modules[owner], nn.LayerNorm)
            or last.startswith("pos_embed")
            or last == "cls_token"
        )
    for parameter in groups[0.05]:
        owner, _, last = parameter.rpartition(".")
        assert last == "weight" and isinstance(modules[owner], (nn.Linear, nn.Conv2d))


def test_the_backbone_has_its_own_rate():
    with torch.device("meta"):
        model = Detector("pvt_tiny")
    groups = parameter_groups(model, replace(RECIPE, backbone_rate=0.1))
    rates = {
        name: (group["base_rate"], group["weight_decay"])
        for group in groups
        for name in names_of(model, group)
    }
    assert rates["backbone.block1.0.mlp.fc1.weight"] == (pytest.approx(1e-4), 0.05)
    assert rates["backbone.pos_embed1"] == (pytest.approx(1e-4), 0.0)
    assert rates["neck.weight"] == (1e-3, 0.05)
    assert rates["neck.bias"] == rates["norm.weight"] == (1e-3, 0.0)
    assert len(rates) == len(list(model.parameters()))


def test_the_schedule_keeps_the_groups_in_proportion():
    optimizer = make_optimizer(Detector("pvt_v2_b0"), replace(RECIPE, backbone_rate=0.1))
    set_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([5e-5, 5e-4])


def test_a_model_without_a_backbone_is_an_error():
    with pytest.raises(ValueError, match="Linear must have one PVT backbone, has 0"):
        parameter_groups(nn.Linear(2, 2), RECIPE)
