"""Asserts the bar for every kernel, which `pvt_kernels.checking.error_budget` computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pvt_kernels.checking.error_budget import Budget, with_gradients

__all__ = ["Budget", "check", "check_error_budget", "samples_for_a_ratio", "with_gradients"]


def samples_for_a_ratio(rows: int, least: int = 1) -> int:
    """How many random inputs of a shape make a ratio of errors more than luck.

    The errors within one row of an output go together, through its mean or its sum, so a shape
    with few rows needs several inputs.
    """
    return max(least, 256 // rows)


def check(budget: Budget, actual: Callable[..., Tensor], trials: int | None = None) -> None:
    """`actual` keeps the budget on the first `trials` of its samples, or on all."""
    for comparison in budget.compare(actual, trials):
        assert comparison.within, str(comparison)


def check_error_budget(
    actual: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    samples: Sequence[tuple[Sequence[Tensor], Tensor]],
    names: Sequence[str],
) -> None:
    """`actual` keeps the budget of `definition`, the plain PyTorch formula, on these samples."""
    check(Budget.of(definition, samples, names), actual)
