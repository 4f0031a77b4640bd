"""PVT-Small without spatial reduction, and without the pyramid."""

import pytest
import torch

from pvt_kernels import models
from pvt_kernels.systems import classification

NAMES = ("pvt_small_full_attention", "pvt_small_columnar")


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return models.create(name, **kwargs)


def test_full_attention_only_lacks_the_reduction():
    full, small = on_meta("pvt_small_full_attention"), on_meta("pvt_small")
    lacking = {key: value for key, value in small.state_dict().items()
               if ".attn.sr." in key or ".attn.norm." in key}  # fmt: skip
    shapes = {key: value.shape for key, value in small.state_dict().items() if key not in lacking}
    assert {key: value.shape for key, value in full.state_dict().items()} == shapes
    for parameters, model in ((20.2, full), (24.5, small)):
        count = sum(p.numel() for p in model.parameters())
        assert count / 1e6 == pytest.approx(parameters, abs=0.05)


def test_full_attention_costs_what_every_query_times_every_key_costs():
    full, small = (models.count_flops(on_meta(name)) for name in (NAMES[0], "pvt_small"))
    difference = 0
    for depth, dim, side, ratio in zip(
        (3, 4, 6), (64, 128, 320), (56, 28, 14), (8, 4, 2), strict=True
    ):
        N, M = side**2, (side // ratio) ** 2
        # products with keys and values, their projections, and no convolution
        block = 2 * N * (N - M) * dim + 2 * (N - M) * dim**2 - M * ratio**2 * dim**2
        difference += depth * block
    assert full - small == difference


def test_the_columnar_model_is_as_large_as_a_vit():
    model = on_meta("pvt_small_columnar")
    vit = 22.05e6  # DeiT-Small, with its head
    extra = 3 * (384**2 + 384) + 3 * 196 * 384 + 3 * 2 * 384 + 2 * 384
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(vit + extra, abs=0.01e6)
    assert models.count_flops(model) / 1e9 == pytest.approx(4.6 + 3 * 196 * 384**2 / 1e9, abs=0.05)


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        (NAMES[0], (4, 8, 16, 32), (64, 128, 320, 512)),
        (NAMES[1], (16, 16, 16, 16), (384, 384, 384, 384)),
    ],
)
def test_shapes_of_the_maps(name, strides, channels):
    model = on_meta(name, features_only=True)
    assert model.strides == strides and model.embed_dims == channels
    maps = model(torch.empty(2, 3, 128, 160, device="meta"))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 128 // s, 160 // s) for c, s in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_classification_system_trains_it(name):
    system, recipe = classification.SYSTEM, classification.RECIPES[-1]
    model = system.build(name, ["a", "b"], recipe).train()
    batch = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(sum(system.loss(model, batch, recipe).values()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for parameter, value in model.named_parameters():
        assert value.grad is not None and value.grad.any(), parameter
