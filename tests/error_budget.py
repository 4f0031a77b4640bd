"""The bar for every kernel: its error against fp64, as a multiple of PyTorch's in its dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvt_kernels.benchmarking.accuracy import GRADIENT_BUDGET, OUTPUT_BUDGET, relative_error


def with_gradients(
    fn: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor
) -> list[Tensor]:
    """[fn(*tensors), then the gradient of each tensor], for the output's gradient `grad`."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = fn(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def samples_for_a_ratio(rows: int, least: int = 1) -> int:
    """How many random inputs of a shape make a ratio of errors more than luck.

    The errors within one row of an output go together, through its mean or its sum, so a shape
    with few rows needs several inputs.
    """
    return max(least, 256 // rows)


@dataclass(frozen=True)
class Budget:
    """What the plain PyTorch formula makes of some inputs in their dtype, and in fp64.

    Attributes:
        names: of the output and of each input's gradient.
        samples: (inputs, gradient of the output) pairs of one shape and dtype, over all of which
            errors are pooled.
        eagers, oracles: of each sample the output and the gradients, in its dtype and in fp64.
    """

    names: Sequence[str]
    samples: Sequence[tuple[Sequence[Tensor], Tensor]]
    eagers: Sequence[list[Tensor]]
    oracles: Sequence[list[Tensor]]

    @classmethod
    def of(
        cls,
        definition: Callable[..., Tensor],
        samples: Sequence[tuple[Sequence[Tensor], Tensor]],
        names: Sequence[str],
    ) -> Budget:
        eagers = [with_gradients(definition, inputs, grad) for inputs, grad in samples]
        oracles = [
            with_gradients(definition, [t.double() for t in inputs], grad)
            for inputs, grad in samples
        ]
        return cls(names, samples, eagers, oracles)

    def check(self, actual: Callable[..., Tensor], trials: int | None = None) -> None:
        """Output and gradients of `actual` err at most 2 and 3 times as much as PyTorch's.

        One rounding of the result to its dtype is always allowed: where PyTorch happens to be
        exact, a multiple of its error would be no bar but luck.

        Args:
            actual: the kernel.
            trials: how many of the samples it is given; all if None. PyTorch's error is pooled
                over all of them in any case: of a single sample that of a bias's gradient, one
                row, is now half, now twice what it is of many, and on each CPU another.
        """
        actuals = [with_gradients(actual, inputs, grad) for inputs, grad in self.samples[:trials]]
        for i, name in enumerate(self.names):
            result, eager, oracle = (
                torch.stack([tensors[i] for tensors in pool])
                for pool in (actuals, self.eagers, self.oracles)
            )
            tried = oracle[:trials]
            assert result.shape == tried.shape, f"{name}: {result.shape} instead of {tried.shape}"
            assert result.dtype == eager.dtype, f"{name}: {result.dtype} instead of {eager.dtype}"
            error, yardstick = relative_error(result, tried), relative_error(eager, oracle)
            factor = OUTPUT_BUDGET if i == 0 else GRADIENT_BUDGET
            allowed = max(factor * yardstick, torch.finfo(result.dtype).eps)
            assert error <= allowed, (
                f"{name}: error {error:.2e}, PyTorch's {yardstick:.2e} in this dtype"
            )


def check_error_budget(
    actual: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    samples: Sequence[tuple[Sequence[Tensor], Tensor]],
    names: Sequence[str],
) -> None:
    """`actual` keeps the budget of `definition`, the plain PyTorch formula, on these samples."""
    Budget.of(definition, samples, names).check(actual)
