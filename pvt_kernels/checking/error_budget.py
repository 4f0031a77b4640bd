"""The bar for every kernel: its error against fp64, as a multiple of PyTorch's in its dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvt_kernels.benchmarking.accuracy import GRADIENT_BUDGET, OUTPUT_BUDGET, relative_error

# An exact gradient below this part of the output's gradient is zero, but for fp64's own rounding:
# with a single key those of q and k. A kernel leaves what rounding makes of a difference of equal
# sums, of which so many roundings are allowed.
ZERO, ROUNDINGS = 1e-9, 64


def with_gradients(
    fn: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor
) -> list[Tensor]:
    """[fn(*tensors), then the gradient of each tensor], for the output's gradient `grad`."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = fn(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@dataclass(frozen=True)
class Comparison:
    """What became of one tensor.

    Attributes:
        name: of the output, or of the gradient.
        error: relative to the fp64 oracle, root mean square; NaN for a tensor of NaN.
        pytorch: the error of the plain formula in the same dtype.
        allowed: the largest error within the budget.
        fault: another shape or dtype than it should have; None if there is none.
    """

    name: str
    error: float
    pytorch: float
    allowed: float
    fault: str | None = None

    @property
    def within(self) -> bool:
        # NaN is not
        return self.fault is None and self.error <= self.allowed

    @property
    def share(self) -> float:
        """Of the allowed error; above 1 is a failure."""
        if self.fault is not None or math.isnan(self.error):
            return math.inf
        return self.error / self.allowed

    def __str__(self) -> str:
        if self.fault is not None:
            return f"{self.name}: {self.fault}"
        return (
            f"{self.name}: error {self.error:.2e}, allowed {self.allowed:.2e}; PyTorch's "
            f"{self.pytorch:.2e} in this dtype"
        )


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
        oracle: Callable[..., Tensor] | None = None,
    ) -> Budget:
        """`oracle` is the definition in a form for fp64 that needs less memory, if given."""
        oracle = definition if oracle is None else oracle
        eagers = [with_gradients(definition, inputs, grad) for inputs, grad in samples]
        oracles = [
            with_gradients(oracle, [t.double() for t in inputs], grad) for inputs, grad in samples
        ]
        return cls(names, samples, eagers, oracles)

    def compare(self, actual: Callable[..., Tensor], trials: int | None = None) -> list[Comparison]:
        """The output and gradients of `actual`, which may err 2 and 3 times as much as PyTorch's.

        One rounding of the result to its dtype is always allowed: where PyTorch happens to be
        exact, a multiple of its error would be no bar but luck.

        Args:
            actual: the kernel.
            trials: how many of the samples it is given; all if None. PyTorch's error is pooled
                over all of them in any case: of a single sample that of a bias's gradient, one
                row, is now half, now twice what it is of many, and on each CPU another.
        """
        results = [with_gradients(actual, inputs, grad) for inputs, grad in self.samples[:trials]]
        grads = torch.stack([grad for _, grad in self.samples])
        comparisons = []
        for i, name in enumerate(self.names):
            pools = ([t[i] for t in pool] for pool in (results, self.eagers, self.oracles))
            factor = OUTPUT_BUDGET if i == 0 else GRADIENT_BUDGET
            comparisons.append(_compared(name, factor, *pools, grads))
        return comparisons


def _compared(
    name: str,
    factor: float,
    results: list[Tensor],
    eagers: list[Tensor],
    oracles: list[Tensor],
    grads: Tensor,
) -> Comparison:
    for what, given, accepted in (
        ("shape", results[0].shape, oracles[0].shape),
        ("dtype", results[0].dtype, eagers[0].dtype),
    ):
        if given != accepted:
            fault = f"{what} is {given} instead of {accepted}"
            return Comparison(name, math.inf, math.nan, math.nan, fault)
    result, eager, oracle = map(torch.stack, (results, eagers, oracles))
    eps = torch.finfo(result.dtype).eps
    floor = ZERO * _rms(grads)
    if oracle.numel() > 0 and _rms(oracle) <= floor:
        unit = ROUNDINGS * _rms(grads)
        error, pytorch = (_rms(t) / unit if unit else _rms(t) for t in (result, eager))
    else:
        error = relative_error(result, oracle[: len(results)])
        pytorch = relative_error(eager, oracle)
    return Comparison(name, error, pytorch, max(factor * pytorch, eps))


def _rms(tensor: Tensor) -> float:
    return tensor.double().norm().item() / max(1, tensor.numel()) ** 0.5
