"""The multi-head attention op: checks, choice of a backend, operators and their autograd."""

from __future__ import annotations

import math
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from pvt_kernels.backends import MultiHeadAttentionInputs, choose, get, transforms
from pvt_kernels.backends.reference.multi_head_attention import project
from pvt_kernels.ops import autocast, checks
from pvt_kernels.ops.attention import default_scale, run_attention
from pvt_kernels.ops.torch_library import fake, operator


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
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of the tokens x to the tokens y, with its projections.

        q = x Wq^T + bq,  k, v = split(y Wkv^T + bkv)
        concat_heads(softmax(q k^T * scale) v) Wo^T + bo

    Equations 2 to 4 of Wang et al., ICCV 2021. One kernel, in which q and o stay in cache, where
    the backend that runs the attention has it; otherwise PyTorch's linear layers around the op
    `attention`. Under autocast all inputs are cast to its dtype.

    Args:
        x: (B, N, C), in float16, bfloat16, float32 or float64; B may be 0.
        y: (B, M, C), like everything below with x's dtype and device.
        q_weight, q_bias: (C, C) and (C,) or None, as torch.nn.Linear has them.
        kv_weight, kv_bias: (2C, C) and (2C,) or None; the keys' part comes first.
        out_weight, out_bias: (C, C) and (C,) or None.
        heads: a divisor of C; head_dim = C / heads.
        scale: factor of the scores; head_dim ** -0.5 if None.
        dropout_p: probability, in [0, 1), of zeroing an attention weight; anything above 0 needs
            the backend "sdpa".

    Returns:
        (B, N, C) in x's dtype.

    Raises:
        ValueError: for shapes, devices or numbers that don't fit; the message says which.
        TypeError: for dtypes that don't fit.
        RuntimeError: if a forced backend can't run the call.
    """
    tensors = (x, y, q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            multi_head_attention, tensors, *tensors, heads, scale, dropout_p
        )
    checks.check_rank("multi_head_attention", "x", x, "(B, N, C)")
    checks.check_size("multi_head_attention", "heads", heads, least=1)
    x, y, q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias = autocast.cast(*tensors)
    layers = (q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias)
    with transforms.untraced():
        scale = default_scale(x.shape[-1] / heads) if scale is None else scale
        check(x, y, *layers, heads, scale)
        if not 0.0 <= dropout_p < 1.0:
            raise ValueError(f"multi_head_attention: dropout_p must be in [0, 1), got {dropout_p}")
        head_dim = index(x.shape[-1]) // index(heads)
    name = choose(MultiHeadAttentionInputs, x.device, x.dtype, head_dim, not dropout_p <= 0)
    if get(name).has("multi_head_attention"):
        tensors = (x, y, *layers)
        save = torch.is_grad_enabled() and any(_requires_grad(t) for t in tensors)
        forward = torch.ops.pvt_kernels.multi_head_attention_forward
        return forward(x, y, *layers, heads, scale, save, name)[0]
    q, k, v = project(x, y, q_weight, q_bias, kv_weight, kv_bias, heads)
    o = run_attention(q, k, v, scale, dropout_p, name)
    return F.linear(o.flatten(2), out_weight, out_bias)


def _requires_grad(t: Tensor | None) -> bool:
    return t is not None and t.requires_grad


def _setup_context(ctx, inputs, output) -> None:
    x, y, q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias, *_ = inputs
    ctx.scale, ctx.backend = inputs[9], inputs[11]
    ctx.has_bias = [bias is not None for bias in (q_bias, kv_bias, out_bias)]
    _, o, kv, lse = output
    ctx.mark_non_differentiable(o, kv, lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, q_weight, q_bias, kv_weight, out_weight, o, kv, lse)


def _backward(ctx, dresult: Tensor | None, *_):
    if dresult is None:
        return (None,) * 12
    dx, dy, *gradients = torch.ops.pvt_kernels.multi_head_attention_backward(
        dresult, *ctx.saved_tensors, ctx.scale, ctx.backend
    )
    dbiases = (d if has else None for d, has in zip(gradients[1::2], ctx.has_bias, strict=True))
    dlayers = (d for layer in zip(gradients[::2], dbiases, strict=True) for d in layer)
    return dx, dy, *dlayers, None, None, None, None


@operator(_setup_context, _backward)
def multi_head_attention_forward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result (B, N, C), and what the backward needs of it.

    That is o, the heads' outputs, (B, N, C), or of shape (0,) if they are not to be saved; k and
    v side by side, (B, M, 2C); and lse, the rows' log-sum-exp of the scores, (B, heads, N) in
    fp32. All contiguous. The arguments are those that `multi_head_attention` has checked.
    """
    layers = (q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias)
    forward = get(backend).modules["multi_head_attention"].forward
    with autocast.suspended(x):
        return forward(x, y, *layers, heads, scale, save)


@fake(multi_head_attention_forward)
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(x, y, q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias, heads, scale)
    B, N, C = x.shape
    lse = x.new_empty((B, heads, N), dtype=torch.float32)
    o = x.new_empty((B, N, C) if save else 0)
    return x.new_empty(B, N, C), o, x.new_empty(B, y.shape[1], 2 * C), lse


@operator()
def multi_head_attention_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dy, and the gradients of q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias.

    All contiguous. `dresult` may have any strides; the rest is what the forward took and
    returned. What a bias of None gets means nothing.
    """
    op = "multi_head_attention_backward"
    checks.check_shape(op, "dresult", dresult, "(B, N, C)", (*x.shape,))
    checks.check_like(op, "dresult", dresult, "x", x)
    backward = get(backend).modules["multi_head_attention"].backward
    with autocast.suspended(x):
        return backward(dresult, x, y, q_weight, q_bias, kv_weight, out_weight, o, kv, lse, scale)


@fake(multi_head_attention_backward)
def _(
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
    backend: str,
) -> tuple[Tensor, ...]:
    gradients = [x.new_empty(x.shape), y.new_empty(y.shape)]
    for weight in (q_weight, kv_weight, out_weight):
        gradients += [x.new_empty(weight.shape), x.new_empty(weight.shape[0])]
    return tuple(gradients)


@register_flop_formula(torch.ops.pvt_kernels.multi_head_attention_forward)
def _forward_flops(x_shape, y_shape, *args, **kwargs) -> int:
    B, N, C = x_shape
    M = y_shape[1]
    return 2 * B * C * (2 * N * M + 2 * N * C + 2 * M * C)


@register_flop_formula(torch.ops.pvt_kernels.multi_head_attention_backward)
def _backward_flops(dresult_shape, x_shape, y_shape, *args, **kwargs) -> int:
    # five products of attention; q again; two of each linear layer
    B, N, C = x_shape
    M = y_shape[1]
    return 2 * B * C * (5 * N * M + N * C + 4 * N * C + 4 * M * C)


def check(
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
) -> None:
    op = "multi_head_attention"
    checks.check_rank(op, "x", x, "(B, N, C)")
    checks.check_dtype(op, "x", x, checks.DTYPES)
    B, N, C = x.shape
    checks.check_size(op, "x's C", C, least=1)
    if C % heads != 0:
        raise ValueError(f"{op}: heads must divide C = {C}, got {heads}")
    checks.check_size(op, "x's N", N, least=1)
    checks.check_rank(op, "y", y, "(B, M, C)")
    checks.check_size(op, "y's M", y.shape[1], least=1)
    checks.check_shape(op, "y", y, "(B, M, C)", (B, y.shape[1], C))
    checks.check_like(op, "y", y, "x", x)
    for name, tensor, form, shape in (
        ("q_weight", q_weight, "(C, C)", (C, C)),
        ("q_bias", q_bias, "(C,)", (C,)),
        ("kv_weight", kv_weight, "(2C, C)", (2 * C, C)),
        ("kv_bias", kv_bias, "(2C,)", (2 * C,)),
        ("out_weight", out_weight, "(C, C)", (C, C)),
        ("out_bias", out_bias, "(C,)", (C,)),
    ):
        if tensor is None and name.endswith("bias"):
            continue
        checks.check_shape(op, name, tensor, form, shape)
        assert tensor is not None  # or the check of its shape had raised
        checks.check_like(op, name, tensor, "x", x)
    # not math.isfinite: torch.compile can't trace it for a symbolic scale
    if not -math.inf < scale < math.inf:
        raise ValueError(f"{op}: scale must be finite, got {scale}")
