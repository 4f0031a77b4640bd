"""Inputs of the multi-head attention op, and its check against the definition in fp64."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pvt_kernels import multi_head_attention, use_backend
from pvt_kernels.backends import AttentionInputs
from pvt_kernels.backends.reference import multi_head_attention as reference

from ...error_budget import Budget, check, samples_for_a_ratio
from . import skip_unless_supported, trials

NAMES = (
    *("result", "dx", "dy", "dq_weight", "dq_bias"),
    *("dkv_weight", "dkv_bias", "dout_weight", "dout_bias"),
)


def random_inputs(
    B: int,
    N: int,
    M: int,
    heads: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
) -> list[Tensor | None]:
    """x, y, and weight and bias of the three layers; the weights have unit gain."""
    C = heads * d
    layers = []
    for out in (C, 2 * C, C):
        layers += [torch.randn(out, C) * C**-0.5, torch.randn(out) if bias else None]
    tensors = (torch.randn(B, N, C), torch.randn(B, M, C), *layers)
    return [None if t is None else t.to(dtype) for t in tensors]


def check_against_oracle(backend: str, *shape: int, dtype: torch.dtype) -> None:
    """`shape` is B, N, M, heads, d."""
    *_, heads, d = shape
    skip_unless_supported(backend, AttentionInputs(torch.device("cpu"), dtype, d, False))

    def op(*tensors):
        with use_backend(backend):
            return multi_head_attention(*tensors, heads)

    budget = _budget(shape, dtype)
    check(budget, op, trials(backend, budget))


# one backend after the other is checked on the same samples
@lru_cache(maxsize=1)
@torch.random.fork_rng(devices=())
def _budget(shape: tuple[int, ...], dtype: torch.dtype) -> Budget:
    torch.manual_seed(0)
    B, N, _, heads, d = shape

    def definition(*tensors):
        return reference.multi_head_attention(*tensors, heads, d**-0.5)

    samples = [
        (random_inputs(*shape, dtype=dtype), torch.randn(B, N, heads * d))
        # a bias's gradient is a single row
        for _ in range(samples_for_a_ratio(rows=B * N, least=16))
    ]
    return Budget.of(definition, samples, NAMES)
