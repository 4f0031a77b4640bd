"""Semantic FPN: the recipe, and the model's size and cost as the paper has them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pvt_kernels import use_backend
from pvt_kernels.systems.semantic_fpn import RECIPES, SYSTEM
from pvt_kernels.training.schedules import Poly

ADE20K = RECIPES[0]


def test_the_recipe_is_the_papers():
    assert (ADE20K.iterations, ADE20K.batch_size, ADE20K.learning_rate) == (80_000, 16, 1e-4)
    assert ADE20K.schedule == Poly(0.9) and ADE20K.crop_size == ADE20K.shorter_edge == 512


@pytest.mark.parametrize(
    ("backbone", "parameters", "gflops"),
    [
        ("pvt_tiny", 17.0, 33.2),
        ("pvt_small", 28.2, 44.5),
        ("pvt_medium", 48.0, 61.0),
        ("pvt_large", 65.1, 79.6),
    ],
)
def test_size_and_cost_are_the_papers(backbone, parameters, gflops):
    """Table 5 of the PVT paper, at 512 x 512."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model = SYSTEM.build(backbone, [""] * 150, ADE20K).eval()
        images = torch.empty(1, 3, 512, 512)
    with torch.no_grad(), use_backend("reference"), counter:
        assert model(images).shape == (1, 150, 128, 128)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(parameters, abs=0.05)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=0.1)
