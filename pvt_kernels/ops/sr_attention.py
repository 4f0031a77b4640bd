"""The whole layer as one op: checks, choice of a backend, operators and their autograd.

In eager mode a call goes around PyTorch's dispatcher: what does not change from call to call, which
is all but the values in the tensors, is decided at the first call of a form and kept.
"""

# the ten parameters travel as one tuple, whose places pyright does not tell apart
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportReturnType=false

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pvt_kernels.backends import (
    MultiHeadAttentionInputs,
    SpatialReductionInputs,
    choose,
    get,
    surroundings,
)
from pvt_kernels.backends.recent import Recent
from pvt_kernels.backends.tensors import memory_format
from pvt_kernels.ops import autocast, checks, multi_head_attention, spatial_reduction
from pvt_kernels.ops.eager import is_plain
from pvt_kernels.ops.torch_library import fake, operator

# forms of calls: enough for every layer of a model at every size of multi-scale training
KEPT = 1024

# weight and bias of the convolution, of the norm, and of the projections q, kv and out
Parameters = tuple[Tensor | None, ...]


class Call(NamedTuple):
    """What calls of one form have in common.

    `layer` is what the backend made for them, with `forward` and `backward`; None where none runs
    both the reduction and the attention.
    """

    layer: Any
    H: int
    W: int
    heads: int
    scale: float
    eps: float
    backend: str | None


_calls: Recent[Call] = Recent(KEPT)


def sr_attention(
    x: Tensor,
    H: int,
    W: int,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    heads: int,
    scale: float,
    eps: float = 1e-5,
) -> Tensor:
    """Spatial-reduction attention: equations 2 to 5 of Wang et al., ICCV 2021.

        y = LayerNorm(Conv2d(x, kernel = stride = R)), or x where there is no convolution
        multi_head_attention(x, y, ...)

    The ops `spatial_reduction` and `multi_head_attention` in one, where the backend that runs both
    has that; otherwise one after the other.

    Args:
        x: tokens (B, N, C), in float16, bfloat16, float32 or float64; N = H*W where there is a
            convolution.
        H, W: height and width of the map in tokens; without a convolution, anything.
        conv_weight, conv_bias, norm_weight, norm_bias, eps: as `spatial_reduction` takes them; the
            first four all None where nothing is reduced.
        q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias, heads, scale: as
            `multi_head_attention` takes them.

    Returns:
        (B, N, C) in x's dtype.

    Raises:
        ValueError: for shapes, devices or numbers that don't fit; the message says which.
        TypeError: for dtypes that don't fit.
        RuntimeError: if a forced backend can't run the call.
    """
    parameters = (
        *(conv_weight, conv_bias, norm_weight, norm_bias),
        *(q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias),
    )
    if not is_plain((x, *parameters)):
        return _dispatched(x, H, W, parameters, heads, scale, eps)
    if autocast.is_enabled(x):
        x, *parameters = _cast(x, parameters)
        with autocast.suspended(x):
            return _eager(x, H, W, parameters, heads, scale, eps)
    return _eager(x, H, W, parameters, heads, scale, eps)


def _eager(
    x: Tensor, H: int, W: int, parameters: Parameters, heads: int, scale: float, eps: float
) -> Tensor:
    around = surroundings(x.device, x.dtype)
    form = _form(x, H, W, parameters, heads, scale, eps, around)
    call = _calls.get(form)
    if call is None:
        _check(x, H, W, parameters, heads, scale, eps)
        call = _call(x, H, W, parameters, heads, scale, eps, _choose(x, parameters, heads))
        _calls.put(form, call)
    if call.layer is None:
        return _composed(x, H, W, parameters, heads, scale, eps)
    if torch.is_grad_enabled() and (x.requires_grad or _require_grad(*parameters)):
        return differentiable(call, x, parameters)
    return inference(call, x, parameters)


def call_of(
    x: Tensor,
    H: int,
    W: int,
    parameters: Parameters,
    heads: int,
    scale: float,
    eps: float,
) -> Call | None:
    """What is kept of a plain call that was made before."""
    around = surroundings(x.device, x.dtype)
    return _calls.get(_form(x, H, W, parameters, heads, scale, eps, around))


def inference(call: Call, x: Tensor, parameters: Parameters) -> Tensor:
    """The result of a call, without derivatives."""
    return call.layer.forward(x, *parameters, False)[0]


def differentiable(call: Call, x: Tensor, parameters: Parameters) -> Tensor:
    """The result of a call, with its derivatives."""
    return _Differentiable.apply(call, x, *parameters)


def _form(
    x: Tensor,
    H: int,
    W: int,
    parameters: Parameters,
    heads: int,
    scale: float,
    eps: float,
    around: object,
) -> tuple:
    """Every fact that the checks, the choice of a backend and a backend's layer look at."""
    conv, conv_bias, gamma, beta, q, q_bias, kv, kv_bias, out, out_bias = parameters
    # spelled out, since it is a tenth of what a small layer takes
    form = (
        *(
            x.shape,
            x.stride(),
            x.dtype,
            x.device,
            H,
            W,
            type(H),
            type(W),
            heads,
            scale,
            eps,
            around,
        ),
        *(q.shape, q.dtype, q.device, q.is_contiguous()),
        *(kv.shape, kv.dtype, kv.device, kv.is_contiguous()),
        *(out.shape, out.dtype, out.device, out.is_contiguous()),
    )
    for bias in (q_bias, kv_bias, out_bias):
        if bias is None:
            form += (None,)
        else:
            form += (bias.shape, bias.dtype, bias.device, bias.is_contiguous())
    if conv is None:
        return form
    return (
        *form,
        *(conv.shape, conv.dtype, conv.device, conv.stride()),
        *(conv_bias.shape, conv_bias.dtype, conv_bias.device, conv_bias.is_contiguous()),
        *(gamma.shape, gamma.dtype, gamma.device, gamma.is_contiguous()),
        *(beta.shape, beta.dtype, beta.device, beta.is_contiguous()),
    )


def _require_grad(*tensors: Tensor | None) -> bool:
    # no generator, which takes twice as long
    for t in tensors:  # noqa: SIM110
        if t is not None and t.requires_grad:
            return True
    return False


def _call(
    x: Tensor,
    H: int,
    W: int,
    parameters: Parameters,
    heads: int,
    scale: float,
    eps: float,
    backend: str | None,
) -> Call:
    layer = None
    if backend is not None:
        make = get(backend).modules["sr_attention"].make
        layer = make(x, H, W, parameters, heads, scale, eps)
    return Call(layer, H, W, heads, scale, eps, backend)


def _choose(x: Tensor, parameters: Parameters, heads: int) -> str | None:
    """The backend that runs the reduction and the attention, if one has both in one."""
    C = index(x.shape[-1])
    name = choose(MultiHeadAttentionInputs, x.device, x.dtype, C // index(heads), False)
    if not get(name).whole_layer:
        return None
    conv_weight = parameters[0]
    if conv_weight is not None:
        R = index(conv_weight.shape[-1])
        if choose(SpatialReductionInputs, x.device, x.dtype, C, R) != name:
            return None
    return name


def _cast(x: Tensor, parameters: Parameters) -> tuple[Tensor | None, ...]:
    conv_weight, conv_bias, gamma, beta, *projections = parameters
    x, conv_weight, conv_bias, *projections = autocast.cast(x, conv_weight, conv_bias, *projections)
    return x, conv_weight, conv_bias, gamma, beta, *projections


def _check(
    x: Tensor, H: int, W: int, parameters: Parameters, heads: int, scale: float, eps: float
) -> None:
    conv_weight, *_ = reduction = parameters[:4]
    if conv_weight is not None:
        spatial_reduction.check(x, H, W, *reduction, eps)
    checks.check_rank("sr_attention", "x", x, "(B, N, C)")
    checks.check_size("sr_attention", "heads", heads, least=1)
    # y is made of x
    multi_head_attention.check(x, x, *parameters[4:], heads, scale)


def _dispatched(
    x: Tensor, H: int, W: int, parameters: Parameters, heads: int, scale: float, eps: float
) -> Tensor:
    """The operator while compiling; else the two ops, which others than the compiler know."""
    if not torch.compiler.is_compiling():
        return _composed(x, H, W, parameters, heads, scale, eps)
    checks.check_rank("sr_attention", "x", x, "(B, N, C)")
    x, *parameters = _cast(x, parameters)
    _check(x, H, W, parameters, heads, scale, eps)
    name = _choose(x, parameters, heads)
    if name is None:
        return _composed(x, H, W, parameters, heads, scale, eps)
    save = torch.is_grad_enabled() and _require_grad(x, *parameters)
    forward = torch.ops.pvt_kernels.sr_attention_forward
    return forward(x, H, W, *parameters, heads, scale, eps, save, name)[0]


def _composed(
    x: Tensor, H: int, W: int, parameters: Parameters, heads: int, scale: float, eps: float
) -> Tensor:
    conv_weight, *_ = reduction = parameters[:4]
    y = x
    if conv_weight is not None:
        y = spatial_reduction.spatial_reduction(x, H, W, *reduction, eps)
    return multi_head_attention.multi_head_attention(x, y, *parameters[4:], heads, scale)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, *parameters):
        result, *saved = call.layer.forward(x, *parameters, True)
        ctx.call = call
        ctx.save_for_backward(x, *parameters, *saved)
        return result

    @staticmethod
    def backward(ctx, dresult):
        saved = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain((dresult,)):
            return None, *_watched_backward(ctx.call, dresult, *saved)
        if autocast.is_enabled(dresult):
            with autocast.suspended(dresult):
                return None, *ctx.call.layer.backward(dresult, *saved)
        return None, *ctx.call.layer.backward(dresult, *saved)


def _watched_backward(call: Call, dresult: Tensor, *saved: Tensor | None):
    """Through the operator, which tells the dispatcher, and has no derivative."""
    x, parameters, results = saved[0], saved[1:11], saved[11:17]
    results = (x.new_empty(0) if t is None else t for t in results)
    backward = torch.ops.pvt_kernels.sr_attention_backward
    gradients = backward(dresult, x, call.H, call.W, *parameters, *results, *call[3:])
    return _of_those_there(gradients, parameters)


def _of_those_there(gradients, parameters):
    dx, *dparameters = gradients
    pairs = zip(dparameters, parameters, strict=True)
    return dx, *(None if t is None else d for d, t in pairs)


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.H, ctx.W, *parameters = inputs[:13]
    ctx.numbers, ctx.backend = inputs[13:16], inputs[17]
    _, *saved = output
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *parameters, *saved)


def _backward(ctx, dresult: Tensor | None, *_):
    if dresult is None:
        return (None,) * 18
    x, *others = ctx.saved_tensors
    backward = torch.ops.pvt_kernels.sr_attention_backward
    gradients = backward(dresult, x, ctx.H, ctx.W, *others, *ctx.numbers, ctx.backend)
    dx, *dparameters = _of_those_there(gradients, others[:10])
    return dx, None, None, *dparameters, None, None, None, None, None


@operator(_setup_context, _backward)
def sr_attention_forward(
    x: Tensor,
    H: int,
    W: int,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    heads: int,
    scale: float,
    eps: float,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result (B, N, C), and with `save` what the backward needs of it.

    That is y, normalized and rstd, as spatial_reduction_forward has them, and kv, o and lse, as
    multi_head_attention_forward has them. Of shape (0,) are all but the result without `save`, and
    the first three without a convolution. The arguments are those that `sr_attention` has checked.
    """
    parameters = (
        *(conv_weight, conv_bias, norm_weight, norm_bias),
        *(q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias),
    )
    call = _known_call(x, H, W, parameters, heads, scale, eps, backend)
    with autocast.suspended(x):
        result, *saved = call.layer.forward(x, *parameters, save)
    if not save:
        saved = (None,) * 6
    return result, *(x.new_empty(0) if t is None else t for t in saved[:6])


@fake(sr_attention_forward)
def _(
    x: Tensor,
    H: int,
    W: int,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    heads: int,
    scale: float,
    eps: float,
    save: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    B, N, C = x.shape
    M, exact = N, torch.promote_types(x.dtype, torch.float32)
    y, normalized, rstd = (x.new_empty(0) for _ in range(3))
    if conv_weight is not None:
        R = conv_weight.shape[-1]
        M = (H // R) * (W // R)
    if conv_weight is not None and save:
        y, normalized = x.new_empty(B, M, C), x.new_empty(B, M, C, dtype=exact)
        rstd = x.new_empty(B, M, dtype=exact)
    result = x.new_empty(B, N, C)
    if not save:
        return result, y, normalized, rstd, *(x.new_empty(0) for _ in range(3))
    lse = x.new_empty((B, heads, N), dtype=exact)
    return result, y, normalized, rstd, x.new_empty(B, M, 2 * C), x.new_empty(B, N, C), lse


@operator()
def sr_attention_backward(
    dresult: Tensor,
    x: Tensor,
    H: int,
    W: int,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    y: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    kv: Tensor,
    o: Tensor,
    lse: Tensor,
    heads: int,
    scale: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x and of the parameters, contiguous but that of conv_weight, which has its
    memory format; of shape (0,) for those that are None.

    `dresult` may have any strides; the rest is what the forward took and returned.
    """
    op = "sr_attention_backward"
    checks.check_shape(op, "dresult", dresult, "(B, N, C)", (*x.shape,))
    checks.check_like(op, "dresult", dresult, "x", x)
    parameters = (
        *(conv_weight, conv_bias, norm_weight, norm_bias),
        *(q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias),
    )
    call = _known_call(x, H, W, parameters, heads, scale, eps, backend)
    saved = (*((y, normalized, rstd) if conv_weight is not None else (None,) * 3), kv, o, lse)
    with autocast.suspended(x):
        dx, *dparameters = call.layer.backward(dresult, x, *parameters, *saved)
    pairs = zip(dparameters, parameters, strict=True)
    return dx, *(x.new_empty(0) if t is None else d for d, t in pairs)


@fake(sr_attention_backward)
def _(
    dresult: Tensor,
    x: Tensor,
    H: int,
    W: int,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    y: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    kv: Tensor,
    o: Tensor,
    lse: Tensor,
    heads: int,
    scale: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, ...]:
    dconv_weight = x.new_empty(0)
    if conv_weight is not None:
        dconv_weight = torch.empty_like(conv_weight, memory_format=memory_format(conv_weight))
    others = (conv_bias, norm_weight, norm_bias, q_weight, q_bias, kv_weight, kv_bias, out_weight)
    return (
        *(x.new_empty(x.shape), dconv_weight),
        *(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (*others, out_bias)),
    )


def _known_call(
    x: Tensor,
    H: int,
    W: int,
    parameters: Parameters,
    heads: int,
    scale: float,
    eps: float,
    backend: str,
) -> Call:
    """Of arguments that were checked, on a backend that was chosen."""
    around = surroundings(x.device, x.dtype)
    form = _form(x, H, W, parameters, heads, scale, eps, (backend, around))
    call = _calls.get(form)
    if call is None:
        call = _call(x, H, W, parameters, heads, scale, eps, backend)
        _calls.put(form, call)
    return call


@register_flop_formula(torch.ops.pvt_kernels.sr_attention_forward)
def _forward_flops(x_shape, H, W, conv_shape, *args, **kwargs) -> int:
    B, N, C = x_shape
    R = 1 if conv_shape is None else conv_shape[-1]
    M = N if conv_shape is None else (H // R) * (W // R)
    convolution = 0 if conv_shape is None else 2 * B * M * R * R * C * C
    return convolution + 2 * B * C * (2 * N * M + 2 * N * C + 2 * M * C)


@register_flop_formula(torch.ops.pvt_kernels.sr_attention_backward)
def _backward_flops(dresult_shape, x_shape, H, W, conv_shape, *args, **kwargs) -> int:
    # of the convolution two products; of attention five; q again; two of each linear layer
    B, N, C = x_shape
    R = 1 if conv_shape is None else conv_shape[-1]
    M = N if conv_shape is None else (H // R) * (W // R)
    convolution = 0 if conv_shape is None else 2 * 2 * B * M * R * R * C * C
    return convolution + 2 * B * C * (5 * N * M + 5 * N * C + 4 * M * C)
