"""Inputs of the attention op, and its check against the definition in fp64."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pvt_kernels import attention, use_backend
from pvt_kernels.backends import AttentionInputs
from pvt_kernels.backends.reference import attention as reference

from ...error_budget import Budget, check, samples_for_a_ratio
from . import skip_unless_supported, trials

NAMES = ("o", "dq", "dk", "dv")


def random_inputs(
    B: int,
    N: int,
    M: int,
    heads: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
) -> list[Tensor]:
    """q, k, v as a layer has them: k and v are strided halves of one projection."""
    q = spread * torch.randn(B, N, heads, d)
    kv = torch.randn(B, M, 2, heads, d)
    return [t.to(dtype) for t in (q, *kv.unbind(2))]


def check_against_oracle(
    backend: str,
    *shape: int,
    dtype: torch.dtype,
    scale: float | None = None,
    spread: float = 1.0,
) -> None:
    """`shape` is B, N, M, heads, d."""
    skip_unless_supported(backend, AttentionInputs(torch.device("cpu"), dtype, shape[-1], False))

    def op(q, k, v):
        with use_backend(backend):
            return attention(q, k, v, scale)

    budget = _budget(shape, dtype, shape[-1] ** -0.5 if scale is None else scale, spread)
    check(budget, op, trials(backend, budget))


# one backend after the other is checked on the same samples
@lru_cache(maxsize=1)
@torch.random.fork_rng(devices=())
def _budget(shape: tuple[int, ...], dtype: torch.dtype, factor: float, spread: float) -> Budget:
    torch.manual_seed(0)
    B, N, _, heads, d = shape
    samples = [
        (random_inputs(*shape, dtype=dtype, spread=spread), torch.randn(B, N, heads, d))
        for _ in range(samples_for_a_ratio(rows=B * N * heads))
    ]
    return Budget.of(lambda q, k, v: reference.attention(q, k, v, factor), samples, NAMES)
