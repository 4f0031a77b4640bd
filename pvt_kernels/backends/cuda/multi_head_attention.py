"""Multi-head attention on NVIDIA GPUs: PyTorch's matrix products around the attention's kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends.cuda import attention


def forward(
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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, o, kv and lse, as multi_head_attention_forward has them."""
    q = F.linear(x, q_weight, q_bias).unflatten(2, (heads, -1))
    kv = F.linear(y, kv_weight, kv_bias)
    k, v = kv.unflatten(2, (2, heads, -1)).unbind(2)
    o, lse = attention.forward(q, k, v, scale)
    o = o.flatten(2)
    return F.linear(o, out_weight, out_bias), o, kv, lse


def backward(
    dresult: Tensor,
    x: Tensor,
    y: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    out_weight: Tensor,
    o: Tensor,
    kv: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    """The gradients, as multi_head_attention_backward has them. q is computed again."""
    C = x.shape[-1]
    by_head = (lse.shape[1], C // lse.shape[1])
    q = F.linear(x, q_weight, q_bias).unflatten(2, by_head)
    k, v = kv.unflatten(2, (2, *by_head)).unbind(2)
    do = (dresult @ out_weight).unflatten(2, by_head)
    dkv = kv.new_empty(*kv.shape[:2], 2, *by_head)
    dq, _, _ = attention.backward(do, q, k, v, o.unflatten(2, by_head), lse, scale, dkv)
    dq, dkv = dq.view(-1, C), dkv.view(-1, 2 * C)
    rows, inputs, results = x.reshape(-1, C), y.reshape(-1, C), dresult.reshape(-1, C)
    return (
        (dq @ q_weight).view(x.shape),
        (dkv @ kv_weight).view(y.shape),
        *(dq.t() @ rows, dq.sum(0)),
        *(dkv.t() @ inputs, dkv.sum(0)),
        *(results.t() @ o.reshape(-1, C), results.sum(0)),
    )
