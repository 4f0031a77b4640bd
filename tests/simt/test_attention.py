"""The CUDA attention kernels, run on the CPU, against the definition in fp64."""

import pytest
import torch

from pvt_kernels.ops.attention import reference

from ..error_budget import check_error_budget, samples_for_a_ratio
from ..ops.test_attention import random_inputs
from .device import ARCH_DTYPES

# (B, N, M, heads, d): whole tiles of queries and keys, one row more, one row less, a single query
SHAPES = (
    (2, 96, 40, 2, 64),
    (1, 190, 95, 3, 32),
    (1, 64, 128, 1, 64),
    (1, 129, 65, 1, 128),
    (9, 1, 2, 7, 8),
    (1, 7, 33, 3, 40),
    (1, 31, 17, 1, 96),
)


def on(device, scale):
    """attention(q, k, v) on the device, differentiable."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            o, lse = device.run("attention", "forward", q, k, v, scale)
            ctx.save_for_backward(q, k, v, o, lse)
            return o

        @staticmethod
        def backward(ctx, do):
            return device.run("attention", "backward", do, *ctx.saved_tensors, scale)

    return Attention.apply


def check_against_oracle(device, *shape, dtype, scale=None, spread=1.0):
    B, N, _, heads, d = shape
    factor = d**-0.5 if scale is None else scale

    def definition(q, k, v):
        return reference.attention(q, k, v, factor)

    samples = []
    for _ in range(samples_for_a_ratio(rows=B * N * heads)):
        inputs = random_inputs(*shape, dtype=dtype, spread=spread)
        samples.append((inputs, torch.randn(B, N, heads, d)))
    check_error_budget(on(device, factor), definition, samples, names=("o", "dq", "dk", "dv"))


@pytest.mark.parametrize(("arch", "dtype"), ARCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_budget(device, arch, dtype, shape):
    device.arch = arch
    device.seed = sum(shape)
    check_against_oracle(device, *shape, dtype=dtype)
