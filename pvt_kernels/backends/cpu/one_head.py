"""Multi-head attention on the CPU where there is one head: stage 1 of every PVT and SegFormer.

One head's projections can move from the N queries and results to the far fewer M keys and values:

    softmax((x Wq^T + bq) k^T) v Wo^T + bo  =  softmax(x k'^T + bk') v' + bo
    k' = k Wq,  bk' = k bq,  v' = v Wo^T

What is left is the attention of the tokens themselves to k' and v', forward and backward. Several
heads would each need a k' and a v' of all C channels, and so more operations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends.cpu import attention


def pays(queries: int, keys: int, heads: int) -> bool:
    """Whether it is less work than the projections of the queries and the results are."""
    return heads == 1 and queries >= 2 * keys


def forward(
    x: Tensor,
    y: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, o, kv and lse, as multi_head_attention_forward has them.

    But o is what the result is before its bias.
    """
    kv = F.linear(*map(_exact, (y, kv_weight, kv_bias))).to(x.dtype)
    keys, key_bias, values = _absorb(kv, q_weight, q_bias, out_weight)
    result = x.new_empty(x.shape)
    o = x.new_empty(x.shape if save else 0)
    lse = attention.run_forward(
        *(t.unsqueeze(2) for t in (x, keys, values)),
        scale,
        key_bias=key_bias,
        result_bias=_exact(out_bias),
        o=o if save else None,
        result=result,
    )
    return result, o, kv, lse


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
    """The gradients, as multi_head_attention_backward has them."""
    keys, key_bias, values = _absorb(kv, q_weight, q_bias, out_weight)
    dx, dkeys, dvalues, dkey_bias = attention.run_backward(
        *(t.unsqueeze(2) for t in (dresult, x, keys, values, o)), lse, scale, key_bias=key_bias
    )
    dkeys, dvalues = (_exact(t.squeeze(2)) for t in (dkeys, dvalues))
    k, v = _exact(kv).chunk(2, dim=-1)
    dk, dv = F.linear(dkeys, _exact(q_weight)), dvalues @ _exact(out_weight)
    dq_bias = x.new_zeros(x.shape[-1])
    if q_bias is not None:
        dkey_bias = dkey_bias.squeeze(1).unsqueeze(2)
        dk = dk + dkey_bias * _exact(q_bias)
        dq_bias = (dkey_bias * k).sum((0, 1))
    dkv = torch.cat((dk, dv), dim=-1)
    dy = dkv @ _exact(kv_weight)
    gradients = (
        *(dy, _products(k, dkeys), dq_bias),
        *(_products(dkv, _exact(y)), dkv.sum((0, 1))),
        *(_products(dvalues, v), dresult.sum((0, 1))),
    )
    return dx.squeeze(2), *(t.to(x.dtype) for t in gradients)


def _absorb(
    kv: Tensor, q_weight: Tensor, q_bias: Tensor | None, out_weight: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """k' and v' (B, M, C) in the dtype, and bk' (B, 1, M) in fp32."""
    k, v = _exact(kv).chunk(2, dim=-1)
    keys, values = k @ _exact(q_weight), F.linear(v, _exact(out_weight))
    key_bias = None if q_bias is None else (k @ _exact(q_bias)).unsqueeze(1)
    return keys.to(kv.dtype), key_bias, values.to(kv.dtype)


def _exact(t: Tensor | None) -> Tensor | None:
    """In fp32, in which all that has M rows is computed: it is little, and rounded once."""
    return None if t is None else t.float()


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Over all tokens of all images, (C_a, C_b)."""
    return a.flatten(0, 1).t() @ b.flatten(0, 1)
