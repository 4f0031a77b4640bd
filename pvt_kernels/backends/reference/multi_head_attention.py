"""Multi-head attention in plain PyTorch: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends.reference import attention as reference


def multi_head_attention(
    x: Tensor,
    y: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    heads: int,
    scale: float,
) -> Tensor:
    """Shapes as the op has them; differentiable, every step in the inputs' dtype."""
    q, k, v = project(x, y, q_weight, q_bias, kv_weight, kv_bias, heads)
    o = reference.attention(q, k, v, scale)
    return F.linear(o.flatten(2), out_weight, out_bias)


def project(
    x: Tensor,
    y: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, N, heads, d), k and v (B, M, heads, d)."""
    B, M, C = y.shape
    q = F.linear(x, q_weight, q_bias).reshape(B, x.shape[1], heads, C // heads)
    k, v = F.linear(y, kv_weight, kv_bias).reshape(B, M, 2, heads, C // heads).unbind(2)
    return q, k, v
