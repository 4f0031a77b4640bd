"""The bar for every kernel: its error against fp64, as a multiple of PyTorch's in its dtype."""

from collections.abc import Callable, Sequence

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


def samples_for_a_ratio(backend: str, rows: int, least: int = 1) -> int:
    """How many random inputs of a shape make a ratio of errors more than luck.

    The errors within one row of an output go together, through its mean or its sum, so a shape
    with few rows needs several inputs; fewer where Triton's interpreter takes seconds for each.
    """
    samples = max(least, 256 // rows)
    return min(max(1, samples // 4), 16) if backend == "triton" else samples


def check_error_budget(
    actual: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    samples: Sequence[tuple[Sequence[Tensor], Tensor]],
    names: Sequence[str],
) -> None:
    """Output and gradients of `actual` err at most 2 and 3 times as much as `definition`'s.

    Args:
        actual, definition: the kernel, and the plain PyTorch formula of the same inputs.
        samples: (inputs, gradient of the output) pairs of one shape and dtype; the errors are
            pooled over them.
        names: of the output and of each input's gradient.
    """
    actuals, eagers, oracles = [], [], []
    for inputs, grad in samples:
        actuals.append(with_gradients(actual, inputs, grad))
        eagers.append(with_gradients(definition, inputs, grad))
        oracles.append(with_gradients(definition, [t.double() for t in inputs], grad))
    for i, name in enumerate(names):
        pooled = [torch.stack([result[i] for result in r]) for r in (actuals, eagers, oracles)]
        factor = OUTPUT_BUDGET if i == 0 else GRADIENT_BUDGET
        assert_within_budget(name, *pooled, factor)


def assert_within_budget(
    name: str, actual: Tensor, eager: Tensor, oracle: Tensor, factor: float
) -> None:
    """`actual` is at most `factor` times as far from the fp64 `oracle` as `eager` is.

    One rounding of the result to its dtype is always allowed: where PyTorch happens to be exact,
    a multiple of its error would be no bar but luck.
    """
    assert actual.shape == oracle.shape, f"{name}: {actual.shape} instead of {oracle.shape}"
    assert actual.dtype == eager.dtype, f"{name}: {actual.dtype} instead of {eager.dtype}"
    error, yardstick = relative_error(actual, oracle), relative_error(eager, oracle)
    allowed = max(factor * yardstick, torch.finfo(actual.dtype).eps)
    assert error <= allowed, f"{name}: error {error:.2e}, PyTorch's {yardstick:.2e} in this dtype"
