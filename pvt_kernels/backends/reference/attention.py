"""Attention in plain PyTorch: the definition, and the formulas that the kernels compute.

    S = scale * Q K^T,  lse = logsumexp(S),  P = exp(S - lse),  O = P V        (forward)
    delta = rowsum(dO * O),  dP = dO V^T,  dS = P * (dP - delta)                (backward)
    dQ = scale * dS K,  dK = scale * dS^T Q,  dV = P^T dO

The backward is that of FlashAttention (Dao et al., 2022, appendix B.2).
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(Q K^T * scale) V, differentiable, every step in the inputs' dtype.

    Args:
        q: (B, N, heads, d).
        k, v: (B, M, heads, d).

    Returns:
        (B, N, heads, d).
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return (((q @ k.transpose(-2, -1)) * scale).softmax(dim=-1) @ v).transpose(1, 2)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o (B, N, heads, d) and lse (B, heads, N)."""
    p, lse = _probabilities(q, k, scale)
    o = torch.einsum("bhnm,bmhd->bnhd", p, v.to(p.dtype))
    return o.to(q.dtype).contiguous(), lse


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, shaped like q, k, v."""
    p, _ = _probabilities(q, k, scale, lse)
    do_, q_, k_, v_ = (t.to(p.dtype) for t in (do, q, k, v))
    delta = (do_ * o).sum(-1).transpose(1, 2)
    dp = torch.einsum("bnhd,bmhd->bhnm", do_, v_)
    ds = p * (dp - delta.unsqueeze(-1)) * scale
    dq = torch.einsum("bhnm,bmhd->bnhd", ds, k_)
    dk = torch.einsum("bhnm,bnhd->bmhd", ds, q_)
    dv = torch.einsum("bhnm,bnhd->bmhd", p, do_)
    return tuple(t.to(q.dtype).contiguous() for t in (dq, dk, dv))


def _probabilities(
    q: Tensor, k: Tensor, scale: float, lse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """P (B, heads, N, M) and lse, in fp32, or fp64 for fp64 inputs."""
    accumulate = torch.promote_types(q.dtype, torch.float32)
    s = torch.einsum("bnhd,bmhd->bhnm", q.to(accumulate), k.to(accumulate)) * scale
    if lse is None:
        # not by way of lse: o scaled by its rounding would not fit delta, and so dP, any more
        return s.softmax(-1), s.logsumexp(-1)
    return (s - lse.unsqueeze(-1)).exp(), lse
