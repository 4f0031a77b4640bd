"""Multi-head attention on the CPU: csrc/cpu/multi_head_attention_forward.cpp and _backward.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cpu
from pvt_kernels.backends.cpu import one_head
from pvt_kernels.backends.cpu.tensors import address, tokens
from pvt_kernels.backends.tensors import dtype_name, with_adjacent_channels


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
    B, N, C = x.shape
    if one_head.pays(N, y.shape[1], heads):
        layers = (q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias)
        return one_head.forward(x, y, *layers, scale, save)
    x, y = with_adjacent_channels(x), with_adjacent_channels(y)
    biases = [_vector(bias) for bias in (q_bias, kv_bias, out_bias)]
    weights = [weight.contiguous() for weight in (q_weight, kv_weight, out_weight)]
    layers = zip(map(address, weights), map(address, biases), strict=True)
    result = x.new_empty(B, N, C)
    o = x.new_empty((B, N, C) if save else 0)
    kv = x.new_empty(B, y.shape[1], 2 * C)
    lse = x.new_empty(B, heads, N, dtype=torch.float32)
    cpu.multi_head_attention_forward(
        _sizes(x, y, heads, scale),
        tokens(x),
        tokens(y),
        *layers,
        *map(address, (result, o if save else None, kv, lse)),
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
    if one_head.pays(x.shape[1], y.shape[1], lse.shape[1]):
        layers = (q_weight, q_bias, kv_weight, out_weight)
        return one_head.backward(dresult, x, y, *layers, o, kv, lse, scale)
    C, dtype = x.shape[-1], x.dtype
    dresult, x, y = (with_adjacent_channels(t) for t in (dresult, x, y))
    o, kv, lse = (t.contiguous() for t in (o, kv, lse))
    weights = [weight.contiguous() for weight in (q_weight, kv_weight, out_weight)]
    biases = [_vector(q_bias), None, None]
    layers = zip(map(address, weights), map(address, biases), strict=True)
    dx, dy = x.new_empty(x.shape), y.new_empty(y.shape)
    dweights = [x.new_empty(weight.shape) for weight in weights]
    dbiases = [x.new_empty(rows * C, dtype=torch.float32) for rows in (1, 2, 1)]
    cpu.multi_head_attention_backward(
        _sizes(x, y, lse.shape[1], scale),
        *map(tokens, (dresult, x, y)),
        *layers,
        *map(address, (o, kv, lse, dx, dy)),
        *zip(map(address, dweights), map(address, dbiases), strict=True),
    )
    dq, dkv, dout = zip(dweights, (dbias.to(dtype) for dbias in dbiases), strict=True)
    return dx, dy, *dq, *dkv, *dout


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _sizes(x: Tensor, y: Tensor, heads: int, scale: float) -> cpu.AttentionSizes:
    B, N, C = x.shape
    return B, N, y.shape[1], heads, C // heads, dtype_name(x), scale, torch.get_num_threads()
