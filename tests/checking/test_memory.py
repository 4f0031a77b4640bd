"""What a layer adds to training's peak, counted by PyTorch's allocator on the CPU."""

import pytest
import torch

from pvt_kernels.benchmarking.shapes import stage_shape
from pvt_kernels.checking.memory import LIMIT, LayerMemory, kept_bytes, layer_memory


def measured(backend, stage, dtype=torch.float32):
    shape = stage_shape(stage, (224, 224), 2)
    return layer_memory(backend, shape, dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_this_packages_layers_keep_no_more_than_they_need(stage, dtype):
    memory = measured("cpu", stage, dtype)
    assert memory.ratio == pytest.approx(1.0, abs=0.01)
    assert memory.within


def test_pytorchs_keep_more():
    memory = measured("sdpa", 1)
    assert memory.ratio > LIMIT
    assert not memory.within


def test_what_is_kept_is_x_o_lse_and_rows_of_the_reduced_map():
    shape = stage_shape(1, (800, 1216), 2)
    tokens, rows = 2 * 60800 * 64 * 2, 2 * 950
    # k, v and y in the dtype; the normalised rows and rstd in fp32
    reduced = 3 * rows * 64 * 2 + rows * 65 * 4
    assert kept_bytes(shape, torch.float16) == 2 * tokens + 2 * 60800 * 4 + reduced


def test_the_limit():
    assert LayerMemory(114, 100).within
    assert not LayerMemory(116, 100).within
