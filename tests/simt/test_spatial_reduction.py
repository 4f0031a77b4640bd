"""The CUDA kernels of the spatial reduction, run on the CPU, against the definition in fp64."""

import pytest
import torch

from pvt_kernels.ops.spatial_reduction import reference

from ..error_budget import check_error_budget, samples_for_a_ratio
from ..ops.test_spatial_reduction import EPS, NAMES, at_size, random_inputs
from .device import ARCH_DTYPES

# (B, H, W, C, R): divisible, with rows and columns left over, one patch an image, no reduction,
# several tiles of channels
SHAPES = (
    (4, 24, 40, 16, 8),
    (3, 41, 27, 32, 4),
    (20, 3, 3, 40, 2),
    (3, 7, 13, 16, 1),
    (5, 10, 14, 136, 2),
)


def on(device):
    """spatial_reduction(x, H, W, ...) on the device, differentiable."""

    class SpatialReduction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, H, W, weight, bias, norm_weight, norm_bias, eps):
            arguments = (x, H, W, weight, bias, norm_weight, norm_bias, eps)
            y, normalized, rstd = device.run("spatial_reduction", "forward", *arguments)
            ctx.save_for_backward(weight, norm_weight, normalized, rstd)
            ctx.x, ctx.H, ctx.W = x, H, W
            return y

        @staticmethod
        def backward(ctx, dy):
            dx, *dparameters = device.run(
                "spatial_reduction", "backward", dy, ctx.x, ctx.H, ctx.W, *ctx.saved_tensors
            )
            return dx, None, None, *dparameters, None

    return SpatialReduction.apply


def check_against_oracle(device, B, H, W, C, R, dtype):
    M = (H // R) * (W // R)
    samples = [
        (random_inputs(B, H, W, C, R, dtype), torch.randn(B, M, C))
        for _ in range(samples_for_a_ratio(rows=B * M))
    ]
    definition = reference.spatial_reduction
    check_error_budget(at_size(on(device), H, W), at_size(definition, H, W), samples, NAMES)


@pytest.mark.parametrize(("arch", "dtype"), ARCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_budget(device, arch, dtype, shape):
    device.arch = arch
    device.seed = sum(shape)
    check_against_oracle(device, *shape, dtype)
