"""Inputs of the spatial reduction op, and its check against the definition in fp64."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from pvt_kernels import spatial_reduction, use_backend
from pvt_kernels.backends import SpatialReductionInputs
from pvt_kernels.backends.reference import spatial_reduction as reference

from ...error_budget import Budget, check, samples_for_a_ratio
from . import skip_unless_supported, trials

NAMES = ("y", "dx", "dweight", "dbias", "dnorm_weight", "dnorm_bias")
EPS = 1e-5


def random_inputs(
    B: int, H: int, W: int, C: int, R: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """x, weight, bias, norm_weight, norm_bias; the weight scaled as a layer's after its init."""
    tensors = (
        torch.randn(B, H * W, C),
        torch.randn(C, C, R, R) * (R * R * C) ** -0.5,
        torch.randn(C),
        1 + 0.1 * torch.randn(C),
        torch.randn(C),
    )
    return [t.to(dtype) for t in tensors]


def at_size(op: Callable[..., Tensor], H: int, W: int) -> Callable[..., Tensor]:
    """`op` as a function of the tensors alone."""
    return lambda x, *parameters: op(x, H, W, *parameters, EPS)


def check_against_oracle(
    backend: str, B: int, H: int, W: int, C: int, R: int, dtype: torch.dtype
) -> None:
    skip_unless_supported(backend, SpatialReductionInputs(torch.device("cpu"), dtype, C, R))

    def op(*arguments):
        with use_backend(backend):
            return spatial_reduction(*arguments)

    budget = _budget((B, H, W, C, R), dtype)
    check(budget, at_size(op, H, W), trials(backend, budget))


# one backend after the other is checked on the same samples
@lru_cache(maxsize=1)
@torch.random.fork_rng(devices=())
def _budget(shape: tuple[int, ...], dtype: torch.dtype) -> Budget:
    torch.manual_seed(0)
    B, H, W, C, R = shape
    M = (H // R) * (W // R)
    samples = [
        (random_inputs(*shape, dtype=dtype), torch.randn(B, M, C))
        for _ in range(samples_for_a_ratio(rows=B * M))
    ]
    return Budget.of(at_size(reference.spatial_reduction, H, W), samples, NAMES)
