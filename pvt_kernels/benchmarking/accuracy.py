"""Errors against an fp64 oracle, and how much of one is too much.

The oracle evaluates softmax(q k^T * scale) v in fp64 a chunk of queries at a time, forward and
backward, so that the matrix of all queries by all keys never exists at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# An implementation may err by this much more than the eager formula in the same dtype does.
OUTPUT_BUDGET = 2.0
GRADIENT_BUDGET = 3.0

# The eager formula itself may err by this multiple of the dtype's eps; it also bounds naive
# attention, and every contender where eager could not run. Measured on the photo's stages.
EAGER_OUTPUT_EPS = 8.0
EAGER_GRADIENT_EPS = 32.0
# A whole model's parameters, all at once: PyTorch's own convolutions over the largest maps err by
# 40 on the photo.
EAGER_PARAMETERS_EPS = 64.0

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


def eager_allowance(name: str, dtype: torch.dtype) -> float:
    """The relative error that the eager formula may have in a dtype."""
    if is_output(name):
        multiple = EAGER_OUTPUT_EPS
    else:
        multiple = EAGER_PARAMETERS_EPS if name == PARAMETERS else EAGER_GRADIENT_EPS
    return multiple * torch.finfo(dtype).eps


def error_budgets(
    names: list[str], dtype: torch.dtype, eager_errors: dict[str, float] | None
) -> dict[str, float]:
    """The relative error allowed for each compared tensor.

    Without `eager_errors` (for the eager formula itself, or where it could not run) a multiple of
    the dtype's eps; with them, a multiple of what the eager formula errs by, but no less than
    eps: one rounding is no fault where the eager formula happens to be exact.
    """
    budgets = {}
    for name in names:
        budgets[name] = eager_allowance(name, dtype)
        if eager_errors is not None:
            factor = OUTPUT_BUDGET if is_output(name) else GRADIENT_BUDGET
            allowed = factor * min(budgets[name], eager_errors[name])
            budgets[name] = max(allowed, torch.finfo(dtype).eps)
    return budgets


def verdict(errors: dict[str, float], budgets: dict[str, float]) -> str | None:
    """What is wrong, worst tensor first named; None if every error is within its budget."""
    # written as "not <=" so that NaN is wrong
    wrong = [name for name, error in errors.items() if not error <= budgets[name]]
    if not wrong:
        return None
    name = max(wrong, key=lambda n: errors[n] / budgets[n] if errors[n] == errors[n] else 1e300)
    kind = "output" if is_output(name) else "gradient"
    others = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"relative error of {kind} {name!r} is {errors[name]:.1e}, "
        f"allowed {budgets[name]:.1e}{others}"
    )
