"""Inputs of the feed-forward op, and its check against the definition in fp64."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pvt_kernels import feed_forward, use_backend
from pvt_kernels.backends import FeedForwardInputs
from pvt_kernels.backends.reference import feed_forward as reference

from ...error_budget import Budget, check, samples_for_a_ratio
from . import skip_unless_supported, trials

NAMES = ("result", "dx", "dfc1_weight", "dfc1_bias", "ddw_weight", "ddw_bias", "dfc2_weight")
PLAIN_NAMES = ("result", "dx", "dfc1_weight", "dfc1_bias", "dfc2_weight")


class Case(NamedTuple):
    """Sizes, and which of the variants: with a convolution, with a ReLU before it."""

    B: int
    H: int
    W: int
    C: int
    D: int
    conv: bool = True
    activation: str = "gelu"
    relu_before_conv: bool = False

    @property
    def options(self) -> tuple[str, bool]:
        return self.activation, self.relu_before_conv


def random_inputs(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x and the layers, of unit gain, those of the convolution where there is one."""
    C, D = case.C, case.D
    conv = [torch.randn(D, 1, 3, 3) / 3, torch.randn(D)] if case.conv else []
    tensors = (
        *(torch.randn(case.B, case.H * case.W, C), torch.randn(D, C) * C**-0.5, torch.randn(D)),
        *conv,
        *(torch.randn(C, D) * D**-0.5, torch.randn(C)),
    )
    return [t.to(dtype) for t in tensors]


def of_tensors(op: Callable[..., Tensor], case: Case) -> Callable[..., Tensor]:
    """`op` as a function of the tensors that `random_inputs` gives."""

    def run(x, *layers):
        if not case.conv:
            layers = (*layers[:2], None, None, *layers[2:])
        return op(x, case.H, case.W, *layers, *case.options)

    return run


def check_against_oracle(backend: str, case: Case, dtype: torch.dtype) -> None:
    inputs = FeedForwardInputs(torch.device("cpu"), dtype, case.C, case.D, case.conv, False)
    skip_unless_supported(backend, inputs)

    def op(*arguments):
        with use_backend(backend):
            return feed_forward(*arguments)

    budget = _budget(case, dtype)
    check(budget, of_tensors(op, case), trials(backend, budget))


# one backend after the other is checked on the same samples
@lru_cache(maxsize=1)
@torch.random.fork_rng(devices=())
def _budget(case: Case, dtype: torch.dtype) -> Budget:
    torch.manual_seed(0)
    rows = case.B * case.H * case.W
    samples = [
        (random_inputs(case, dtype), torch.randn(case.B, case.H * case.W, case.C))
        # a bias's gradient is a single row
        for _ in range(samples_for_a_ratio(rows=rows, least=8))
    ]
    names = (*(NAMES if case.conv else PLAIN_NAMES), "dfc2_bias")
    return Budget.of(of_tensors(reference.feed_forward, case), samples, names)
