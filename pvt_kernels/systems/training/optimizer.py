"""AdamW, and which parameters it decays and how fast it moves them."""

from __future__ import annotations

import re

import torch
from torch import nn

from pvt_kernels.systems.training.recipe import Recipe
from pvt_kernels.systems.training.system import backbone_of

# Positions and class tokens, of which Trans2Seg has one for each class. PVT's original code decays
# the positions (its no_weight_decay names the class token alone); here none of them decay.
_POSITIONS = re.compile(r"(^|\.)(pos_embed\d*|cls_token|cls_embed)$")


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """AdamW's groups: {backbone, the rest} x {with, without weight decay}, where not empty.

    Norms and biases, which are the parameters with one dimension or named "bias", and positions
    are without. `base_rate` is a group's learning rate before the schedule's factor.
    """
    backbone = {id(p) for p in backbone_of(model).parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith("bias") or _POSITIONS.search(name)
            groups.setdefault((id(parameter) in backbone, not plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "base_rate": recipe.learning_rate * (recipe.backbone_rate if in_backbone else 1.0),
        }
        for (in_backbone, decayed), parameters in groups.items()
    ]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with PyTorch's betas and eps, as the original code has it."""
    return torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.learning_rate)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its base rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
