"""The mapping for Hugging Face's `kernels`."""

import pytest
import torch
from torch import nn

from pvt_kernels.integrations import hf_kernels

from .checks import with_lively_weights
from .doubles import Block, OpenMMLabAttention, PvtAttention

kernels = pytest.importorskip("kernels", reason="kernels is not installed")


def test_kernelize_with_the_mapping():
    blocks = (PvtAttention(), PvtAttention(attn_drop=0.3), OpenMMLabAttention(batch_first=False))
    model = with_lively_weights(nn.Sequential(*map(Block, blocks))).eval()
    x = torch.randn(2, Block.H * Block.W, 32)
    expected = model(x)
    layers = hf_kernels.mapping(model, "cpu", "cuda")
    assert {name: set(devices) for name, devices in layers.items()} == {
        "PvtAttention": {"cpu", "cuda"}
    }
    with kernels.use_kernel_mapping(layers, inherit_mapping=False):
        mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
        kernels.kernelize(model, mode=mode, device="cpu")
    assert ["forward" in vars(block.attn) for block in model] == [True, True, False]
    torch.testing.assert_close(model(x), expected)
    assert not torch.equal(model(x), expected)
    model.train()(x).sum().backward()
    assert model[0].attn.q.weight.grad is not None
