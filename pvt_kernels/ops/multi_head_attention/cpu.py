"""Multi-head attention on the CPU: csrc/cpu/multi_head_attention_forward.cpp and _backward.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels._C import cpu
from pvt_kernels.ops.cpu_tensors import tokens, workspace
from pvt_kernels.ops.tensors import dtype_name, with_adjacent_channels


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
    """The result, o, kv and lse, as multi_head_attention_forward in op.py has them."""
    B, N, C = x.shape
    x, y = with_adjacent_channels(x), with_adjacent_channels(y)
    biases = [_vector(bias) for bias in (q_bias, kv_bias, out_bias)]
    weights = [weight.contiguous() for weight in (q_weight, kv_weight, out_weight)]
    result = x.new_empty(B, N, C)
    o = x.new_empty((B, N, C) if save else 0)
    kv = x.new_empty(B, y.shape[1], 2 * C)
    lse = x.new_empty(B, heads, N, dtype=torch.float32)
    sizes = _sizes(x, y, heads, scale)
    scratch = workspace(cpu.multi_head_attention_forward_workspace(sizes))
    layers = map(_linear, weights, biases)
    cpu.multi_head_attention_forward(
        cpu.MultiHeadAttention(sizes, tokens(x), tokens(y), *layers),
        result.data_ptr(),
        o.data_ptr() if save else 0,
        *(t.data_ptr() for t in (kv, lse, scratch)),
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
    """The gradients, as multi_head_attention_backward in op.py has them."""
    C, dtype = x.shape[-1], x.dtype
    dresult, x, y = (with_adjacent_channels(t) for t in (dresult, x, y))
    o, kv, lse = (t.contiguous() for t in (o, kv, lse))
    weights = [weight.contiguous() for weight in (q_weight, kv_weight, out_weight)]
    biases = [_vector(q_bias), None, None]
    dx, dy = x.new_empty(x.shape), y.new_empty(y.shape)
    dweights = [x.new_empty(weight.shape) for weight in weights]
    dbiases = [torch.empty(rows * C) for rows in (1, 2, 1)]
    sizes = _sizes(x, y, lse.shape[1], scale)
    scratch = workspace(cpu.multi_head_attention_backward_workspace(sizes))
    cpu.multi_head_attention_backward(
        cpu.MultiHeadAttention(sizes, tokens(x), tokens(y), *map(_linear, weights, biases)),
        tokens(dresult),
        *(t.data_ptr() for t in (o, kv, lse, dx, dy)),
        *(
            cpu.LinearGradient(w.data_ptr(), b.data_ptr())
            for w, b in zip(dweights, dbiases, strict=True)
        ),
        scratch.data_ptr(),
    )
    dq, dkv, dout = zip(dweights, (dbias.to(dtype) for dbias in dbiases), strict=True)
    return dx, dy, *dq, *dkv, *dout


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _linear(weight: Tensor, bias: Tensor | None) -> cpu.Linear:
    return cpu.Linear(weight.data_ptr(), 0 if bias is None else bias.data_ptr())


def _sizes(x: Tensor, y: Tensor, heads: int, scale: float) -> cpu.AttentionSizes:
    B, N, C = x.shape
    threads = torch.get_num_threads()
    dtype = dtype_name(x)
    return cpu.AttentionSizes(B, N, y.shape[1], heads, C // heads, dtype, scale, threads)
