"""The modules under test; without triton, importing them skips the tests that do."""

from importlib import import_module

import pytest
import torch

from pvt_kernels.backends import AttentionInputs
from pvt_kernels.backends.registry import BACKENDS

triton_launch = pytest.importorskip(
    "pvt_kernels.ops.triton_launch", reason="triton is not installed"
)
triton_attention = import_module("pvt_kernels.ops.attention.triton")
attention_tiles = import_module("pvt_kernels.ops.attention.triton.tiles")
triton_mha = import_module("pvt_kernels.ops.multi_head_attention.triton")
triton_reduction = import_module("pvt_kernels.ops.spatial_reduction.triton")
reduction_tiles = import_module("pvt_kernels.ops.spatial_reduction.triton.tiles")

REASONS = BACKENDS["triton"].not_supported_reasons(
    AttentionInputs(torch.device("cpu"), torch.float32, 64, False)
)
needs_interpreter = pytest.mark.skipif(bool(REASONS), reason=f"triton: {'; '.join(REASONS)}")
