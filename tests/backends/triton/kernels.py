"""The modules under test; without triton, importing them skips the tests that do."""

from importlib import import_module

import pytest
import torch

from pvt_kernels.backends import AttentionInputs
from pvt_kernels.backends.registry import BACKENDS

triton_launch = pytest.importorskip(
    "pvt_kernels.backends.triton.launch", reason="triton is not installed"
)
triton_attention = import_module("pvt_kernels.backends.triton.attention")
attention_tiles = import_module("pvt_kernels.backends.triton.attention.tiles")
triton_mha = import_module("pvt_kernels.backends.triton.multi_head_attention")
linear_gradients = import_module(
    "pvt_kernels.backends.triton.multi_head_attention.linear_gradients"
)
triton_reduction = import_module("pvt_kernels.backends.triton.spatial_reduction")
reduction_tiles = import_module("pvt_kernels.backends.triton.spatial_reduction.tiles")
triton_feed_forward = import_module("pvt_kernels.backends.triton.feed_forward")
feed_forward_tiles = import_module("pvt_kernels.backends.triton.feed_forward.tiles")

REASONS = BACKENDS["triton"].not_supported_reasons(
    AttentionInputs(torch.device("cpu"), torch.float32, 64, False)
)
needs_interpreter = pytest.mark.skipif(bool(REASONS), reason=f"triton: {'; '.join(REASONS)}")
