"""Errors against an fp64 oracle, and how much of one is too much.

The oracle evaluates softmax(q k^T * scale) v in fp64 a chunk of queries at a time, forward and
backward, so that the matrix of all queries by all keys never exists at once.

The yardstick is what rounding costs: how far the oracle's own result moves when every number that
it is given is rounded once to the dtype (`rounding`). That is the dtype's eps times a condition
number, the same on every machine, and large where terms cancel, as in a bias' gradient, which sums
over all tokens. PyTorch's formulas are allowed what sums of thousands of terms add to it. This
package's kernels are held to the eager formula's own error on the machine, but never to less than
one rounding of their inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# This package may err by this much more than the eager formula in the same dtype does.
OUTPUT_BUDGET = 2.0
GRADIENT_BUDGET = 3.0

# Of PyTorch's formulas: tensors on the way to a result that are rounded to the dtype count as this
# many roundings of the inputs, and the rounding errors of a sum grow with the root of its length,
# which is up to the 64 * 8 * 8 products of stage 1's convolution. Sums are in fp32 at least.
ROUNDED_TENSORS = 4
LONGEST_SUM = 4096

# beyond so many budgets, or so large a part of the result, an error is not one of rounding
WRONG_BUDGETS, WRONG_ERROR = 100.0, 0.5

OUTPUT = "output"
# a whole model's
PARAMETERS = "parameters"
CHUNK = 2048


def relative_error(actual: Tensor, oracle: Tensor) -> float:
    """||actual - oracle|| / ||oracle|| in fp64: the relative root-mean-square error.

    NaN if `actual` has one; infinity if the oracle is all zero and `actual` is not.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != oracle.shape:
        raise ValueError(
            f"actual: given shape {tuple(actual.shape)}, accepted the oracle's shape "
            f"{tuple(oracle.shape)}"
        )
    oracle = oracle.detach().double()
    difference = (actual.detach().to(oracle.device).double() - oracle).norm().item()
    size = oracle.norm().item()
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, scale: float, chunk: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.chunk = scale, chunk
        parts = [_probabilities(part, k, scale) @ v for part in q.split(chunk, dim=-2)]
        return torch.cat(parts, dim=-2)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        dk, dv, dq = torch.zeros_like(k), torch.zeros_like(v), []
        for part, do in zip(q.split(ctx.chunk, dim=-2), grad.split(ctx.chunk, dim=-2), strict=True):
            p = _probabilities(part, k, ctx.scale)
            dp = do @ v.transpose(-2, -1)
            ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * ctx.scale
            dq.append(ds @ k)
            dk += ds.transpose(-2, -1) @ part
            dv += p.transpose(-2, -1) @ do
        return torch.cat(dq, dim=-2), dk, dv, None, None


def _probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1)


def attention_oracle(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, chunk: int = CHUNK
) -> Tensor:
    """Attention in fp64, differentiable, a chunk of queries at a time.

    Args:
        q: (B, N, heads, d), any floating dtype.
        k, v: (B, M, heads, d).
        scale: of the logits; d ** -0.5 if None.
        chunk: queries at a time.

    Returns:
        o (B, N, heads, d) in float64.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    return _ChunkedAttention.apply(q, k, v, scale, chunk).transpose(1, 2)


def is_output(name: str) -> bool:
    """Whether a compared tensor is an output rather than a gradient."""
    return name.startswith(OUTPUT)


def rounded(tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """An fp64 tensor as one rounding to a dtype may leave it: at random up to eps / 2 away."""
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
    return tensor * (1 + torch.finfo(dtype).eps * (noise - 0.5))


def peer_budgets(rounding: dict[str, float], dtype: torch.dtype) -> dict[str, float]:
    """The relative errors allowed to PyTorch's formulas, by what one rounding of the inputs costs.

    Args:
        rounding: how far each compared tensor moves when every input is rounded to `dtype`.
    """
    eps = torch.finfo(dtype).eps
    sums = math.sqrt(LONGEST_SUM) * min(eps, torch.finfo(torch.float32).eps) / eps
    return {name: cost * (ROUNDED_TENSORS + sums) for name, cost in rounding.items()}


def package_budgets(
    rounding: dict[str, float], dtype: torch.dtype, eager_errors: dict[str, float] | None
) -> dict[str, float]:
    """The relative errors allowed to this package: multiples of the eager formula's.

    Where that could not run, and where it is wrong itself, it counts as erring by its own budget;
    where it happens to be all but exact, one rounding of the inputs is no fault.
    """
    budgets = peer_budgets(rounding, dtype)
    if eager_errors is None:
        return budgets
    for name, allowed in budgets.items():
        factor = OUTPUT_BUDGET if is_output(name) else GRADIENT_BUDGET
        # in this order, so that NaN counts as the budget
        budgets[name] = max(factor * min(allowed, eager_errors[name]), rounding[name])
    return budgets


def is_wrong(errors: dict[str, float], budgets: dict[str, float]) -> bool:
    """Whether an error is so large that no rounding explains it, or NaN."""
    # written as "not <=" so that NaN is wrong
    return any(
        not error <= min(WRONG_BUDGETS * budgets[name], WRONG_ERROR)
        for name, error in errors.items()
    )


def worst(errors: dict[str, float], budgets: dict[str, float]) -> str:
    """The tensor closest to its budget, or furthest beyond; one with NaN before all others."""
    return max(errors, key=lambda n: math.inf if math.isnan(errors[n]) else errors[n] / budgets[n])


def verdict(errors: dict[str, float], budgets: dict[str, float]) -> str | None:
    """Which errors are above their budgets, the worst named; None if there are none."""
    # written as "not <=" so that NaN is above
    above = {name: error for name, error in errors.items() if not error <= budgets[name]}
    if not above:
        return None
    name = worst(above, budgets)
    kind = "output" if is_output(name) else "gradient"
    others = f", and {len(above) - 1} more" if len(above) > 1 else ""
    return (
        f"relative error of {kind} {name!r} is {errors[name]:.1e}, "
        f"allowed {budgets[name]:.1e}{others}"
    )
