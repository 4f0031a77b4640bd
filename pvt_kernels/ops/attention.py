"""The attention op: checks, choice of a backend, torch.library operators and their autograd."""

from __future__ import annotations

import math
from operator import index

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from pvt_kernels.backends import AttentionInputs, choose, get, transforms
from pvt_kernels.ops import autocast, checks
from pvt_kernels.ops.torch_library import fake, operator


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor:
    """softmax(Q K^T * scale) V for every head: equation 1 of Vaswani et al., 2017.

    Strided inputs are read in place; each head's matrix of N x M probabilities is never stored
    by this package's kernels. Under autocast the inputs are cast to its dtype.

    Args:
        q: queries (B, N, heads, d) in float16, bfloat16, float32 or float64; B may be 0.
        k, v: keys and values (B, M, heads, d), with q's dtype and device.
        scale: factor of the scores; d ** -0.5 if None.
        dropout_p: probability, in [0, 1), of zeroing a weight; anything above 0 needs the
            backend "sdpa".

    Returns:
        (B, N, heads, d) in q's dtype.

    Raises:
        ValueError: for shapes, devices or numbers that don't fit; the message says which.
        TypeError: for dtypes that don't fit.
        RuntimeError: if a forced backend can't run the call.
    """
    if has_torch_function_variadic(q, k, v):
        return handle_torch_function(attention, (q, k, v), q, k, v, scale, dropout_p)
    checks.check_rank("attention", "q", q, "(B, N, heads, d)")
    q, k, v = autocast.cast(q, k, v)
    with transforms.untraced():
        scale = default_scale(q.shape[-1]) if scale is None else scale
        _check(q, k, v, scale)
        if not 0.0 <= dropout_p < 1.0:
            raise ValueError(f"attention: dropout_p must be in [0, 1), got {dropout_p}")
        head_dim = index(q.shape[-1])
    name = choose(AttentionInputs, q.device, q.dtype, head_dim, not dropout_p <= 0)
    return run_attention(q, k, v, scale, dropout_p, name)


def default_scale(head_dim: float) -> float:
    """Of the scores: that of Vaswani et al., 2017."""
    return head_dim**-0.5


def run_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout_p: float, name: str
) -> Tensor:
    """`attention` of arguments that were checked, on a backend that can run it."""
    backend = get(name)
    if backend.composite:
        return backend.modules["attention"].attention(q, k, v, scale, dropout_p)
    return torch.ops.pvt_kernels.attention_forward(q, k, v, scale, name)[0]


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, ctx.scale, ctx.backend = inputs
    o, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, o, lse)


def _backward(ctx, do: Tensor | None, dlse: None):
    if do is None:
        return None, None, None, None, None
    grads = torch.ops.pvt_kernels.attention_backward(do, *ctx.saved_tensors, ctx.scale, ctx.backend)
    return *grads, None, None


@operator(_setup_context, _backward)
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """o (B, N, heads, d) and lse, the rows' log-sum-exp of the scores, (B, heads, N).

    lse is natural and in fp32, or fp64 for fp64 inputs. Both results are contiguous. The
    arguments are those that `attention` has checked.
    """
    with autocast.suspended(q):
        return get(backend).modules["attention"].forward(q, k, v, scale)


@fake(attention_forward)
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    _check(q, k, v, scale)
    B, N, heads, _ = q.shape
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((B, heads, N), dtype=lse_dtype)


@operator()
def attention_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, contiguous. `do` may have any strides: an expanded scalar's are all 0.

    The rest is what the forward took and returned.
    """
    checks.check_shape("attention_backward", "do", do, "(B, N, heads, d)", (*q.shape,))
    checks.check_like("attention_backward", "do", do, "q", q)
    with autocast.suspended(q):
        return get(backend).modules["attention"].backward(do, q, k, v, o, lse, scale)


@fake(attention_backward)
def _(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@register_flop_formula(torch.ops.pvt_kernels.attention_forward)
def _forward_flops(q_shape, k_shape, *args, **kwargs) -> int:
    B, N, heads, d = q_shape
    return 2 * 2 * B * heads * N * k_shape[1] * d


@register_flop_formula(torch.ops.pvt_kernels.attention_backward)
def _backward_flops(do_shape, q_shape, k_shape, *args, **kwargs) -> int:
    # five products: S again, dP, dV, dQ, dK
    B, N, heads, d = q_shape
    return 5 * 2 * B * heads * N * k_shape[1] * d


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    checks.check_rank("attention", "q", q, "(B, N, heads, d)")
    checks.check_dtype("attention", "q", q, checks.DTYPES)
    for name, size in zip(("N", "heads", "d"), q.shape[1:], strict=True):
        checks.check_size("attention", f"q's {name}", size, least=1)
    B, _, heads, d = q.shape
    checks.check_rank("attention", "k", k, "(B, M, heads, d)")
    M = k.shape[1]
    checks.check_size("attention", "k's M", M, least=1)
    for name, tensor in (("k", k), ("v", v)):
        checks.check_shape("attention", name, tensor, "(B, M, heads, d)", (B, M, heads, d))
        checks.check_like("attention", name, tensor, "q", q)
    # not math.isfinite: torch.compile can't trace it for a symbolic scale
    if not -math.inf < scale < math.inf:
        raise ValueError(f"attention: scale must be finite, got {scale}")
