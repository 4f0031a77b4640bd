"""The feed-forward op: checks, choice of a backend, operators and their autograd."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from pvt_kernels.backends import FeedForwardInputs, choose, get, transforms
from pvt_kernels.backends.tensors import records_gradients
from pvt_kernels.ops import autocast, checks
from pvt_kernels.ops.eager import is_plain
from pvt_kernels.ops.torch_library import fake, operator

ACTIVATIONS = ("gelu", "relu")
# weights and biases of fc1, of the convolution and of fc2
Layers = tuple[Tensor | None, ...]


def feed_forward(
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str = "gelu",
    relu_before_conv: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """The feed-forward network of a block, whose hidden layer is never stored.

        activation(conv(x W1^T + b1)) W2^T + b2

    The convolution, 3 x 3, depthwise and with zeros around the map, is PVTv2's and SegFormer's
    (Wang et al., 2022, section 3.3; Xie et al., NeurIPS 2021, equation 3); without dw_weight it is
    PVT's network. The kernels take a slab of the tokens through all steps in cache; for gradients
    they save x alone and compute the hidden layer again. Under autocast all inputs are cast to its
    dtype.

    Args:
        x: tokens (B, N, C), in float16, bfloat16, float32 or float64; B may be 0.
        H, W: of the map, with a convolution: N = H*W, row-major. Without one they don't count.
        fc1_weight, fc1_bias: (D, C) and (D,) or None, like everything below with x's dtype and
            device.
        dw_weight, dw_bias: (D, 1, 3, 3) and (D,), either or both None.
        fc2_weight, fc2_bias: (C, D) and (C,) or None.
        activation: "gelu", by the error function, or "relu".
        relu_before_conv: whether a ReLU comes before the convolution, as with linear SRA.
        dropout_p: probability, in [0, 1), of zeroing what the activation gives; anything above 0
            needs the backend "sdpa".

    Returns:
        (B, N, C) in x's dtype.

    Raises:
        ValueError: for shapes, devices, names or numbers that don't fit; the message says which.
        TypeError: for dtypes that don't fit.
        RuntimeError: if a forced backend can't run the call.
    """
    layers = (fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)
    if has_torch_function_variadic(x, *layers):
        arguments = (x, H, W, *layers, activation, relu_before_conv, dropout_p)
        return handle_torch_function(feed_forward, (x, *layers), *arguments)
    checks.check_rank("feed_forward", "x", x, "(B, N, C)")
    x, *layers = autocast.cast(x, *layers)
    with transforms.untraced():
        _check(x, *transforms.integers(H, W), *layers, activation, relu_before_conv)  # pyright: ignore[reportCallIssue]
        if not 0.0 <= dropout_p < 1.0:
            raise ValueError(f"feed_forward: dropout_p must be in [0, 1), got {dropout_p}")
    name = _choose(x, layers, dropout=not dropout_p <= 0)
    backend = get(name)
    if backend.composite:
        run = backend.modules["feed_forward"].feed_forward
        return run(x, H, W, *layers, activation, relu_before_conv, dropout_p)
    forward = torch.ops.pvt_kernels.feed_forward_forward
    return forward(x, H, W, *layers, activation, relu_before_conv, name)


class Call(NamedTuple):
    """All of a plain call that was checked but its tensors, and without dropout."""

    H: int
    W: int
    activation: str
    relu_before_conv: bool
    backend: str


def call_of(x: Tensor, H: int, W: int, layers: Layers, activation: str, relu: bool) -> Call:
    """Of a plain call that was made before."""
    return Call(H, W, activation, relu, _choose(x, layers, dropout=False))


def _choose(x: Tensor, layers: Sequence[Tensor | None], dropout: bool) -> str:
    fc1_weight, _, dw_weight, *_ = layers
    with transforms.untraced():
        D, C = map(index, fc1_weight.shape)  # pyright: ignore[reportOptionalMemberAccess]
    facts = (C, D, dw_weight is not None, dropout, records_gradients(x, *layers))
    return choose(FeedForwardInputs, x.device, x.dtype, *facts)


def inference(call: Call, x: Tensor, layers: Layers) -> Tensor:
    """The result of a call, past PyTorch's dispatcher; without derivatives of this package's."""
    backend, options = get(call.backend), (call.activation, call.relu_before_conv)
    module = backend.modules["feed_forward"]
    if backend.composite:
        return module.feed_forward(x, call.H, call.W, *layers, *options, 0.0)
    return module.forward(x, call.H, call.W, *layers, *options)


def differentiable(call: Call, x: Tensor, layers: Layers) -> Tensor:
    """The result of a call, with its derivatives."""
    if get(call.backend).composite:
        return inference(call, x, layers)
    return _Differentiable.apply(call, x, *layers)  # pyright: ignore[reportReturnType]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, *layers):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.call, ctx.has = call, [layer is not None for layer in layers]
        ctx.save_for_backward(x, *layers[:-1])
        return inference(call, x, layers)

    @staticmethod
    def backward(ctx, dresult):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *layers = ctx.saved_tensors
        H, W, *options, backend = ctx.call
        arguments = (dresult, x, H, W, *layers, *options)
        if torch.is_grad_enabled() or not is_plain((dresult,)):
            # through the operator, which tells the dispatcher, and has no derivative
            dx, *gradients = torch.ops.pvt_kernels.feed_forward_backward(*arguments, backend)
        else:
            with autocast.suspended(x):
                dx, *gradients = get(backend).modules["feed_forward"].backward(*arguments)
        return None, dx, *_of_those_there(gradients, ctx.has)


def _of_those_there(gradients, has):
    return (gradient if there else None for gradient, there in zip(gradients, has, strict=True))


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.H, ctx.W, *layers, ctx.activation, ctx.relu_before_conv, ctx.backend = inputs
    ctx.has = [layer is not None for layer in layers]
    ctx.save_for_backward(x, *layers[:-1])


def _backward(ctx, dresult: Tensor):
    x, *layers = ctx.saved_tensors
    dx, *gradients = torch.ops.pvt_kernels.feed_forward_backward(
        dresult, x, ctx.H, ctx.W, *layers, ctx.activation, ctx.relu_before_conv, ctx.backend
    )
    return dx, None, None, *_of_those_there(gradients, ctx.has), None, None, None


@operator(_setup_context, _backward)
def feed_forward_forward(
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    relu_before_conv: bool,
    backend: str,
) -> Tensor:
    """(B, N, C), contiguous. The arguments are those that `feed_forward` has checked."""
    layers = (fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)
    forward = get(backend).modules["feed_forward"].forward
    with autocast.suspended(x):
        return forward(x, H, W, *layers, activation, relu_before_conv)


@fake(feed_forward_forward)
def _(
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    relu_before_conv: bool,
    backend: str,
) -> Tensor:
    layers = (fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)
    _check(x, H, W, *layers, activation, relu_before_conv)
    return x.new_empty(x.shape)


@operator()
def feed_forward_backward(
    dresult: Tensor,
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    relu_before_conv: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, and the gradients of fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias.

    All contiguous. `dresult` may have any strides; the rest is what the forward took. What a bias
    of None gets means nothing, and a convolution of None gets tensors of shape (0,).
    """
    op = "feed_forward_backward"
    checks.check_shape(op, "dresult", dresult, "(B, N, C)", (*x.shape,))
    checks.check_like(op, "dresult", dresult, "x", x)
    layers = (fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight)
    backward = get(backend).modules["feed_forward"].backward
    with autocast.suspended(x):
        return backward(dresult, x, H, W, *layers, activation, relu_before_conv)


@fake(feed_forward_backward)
def _(
    dresult: Tensor,
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    relu_before_conv: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    C, D = fc2_weight.shape
    conv = (x.new_empty(D, 1, 3, 3), x.new_empty(D))
    if dw_weight is None:
        conv = (x.new_empty(0), x.new_empty(0))
    fc1, fc2 = (x.new_empty(D, C), x.new_empty(D)), (x.new_empty(C, D), x.new_empty(C))
    return x.new_empty(x.shape), *fc1, *conv, *fc2


@register_flop_formula(torch.ops.pvt_kernels.feed_forward_forward)
def _forward_flops(
    x_shape, H, W, fc1_shape, fc1_bias_shape, dw_shape, *args, out_shape=None, **kwargs
) -> int:
    B, N, C = x_shape
    D = fc1_shape[0]
    return 2 * B * N * D * (2 * C + (0 if dw_shape is None else 9))


@register_flop_formula(torch.ops.pvt_kernels.feed_forward_backward)
def _backward_flops(
    dresult_shape, x_shape, H, W, fc1_shape, fc1_bias_shape, dw_shape, *args, **kwargs
) -> int:
    # fc1 and the convolution again; two products of each layer
    B, N, C = x_shape
    D = fc1_shape[0]
    return 2 * B * N * D * (5 * C + (0 if dw_shape is None else 27))


def _check(
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    relu_before_conv: bool,
) -> None:
    op = "feed_forward"
    checks.check_rank(op, "x", x, "(B, N, C)")
    checks.check_dtype(op, "x", x, checks.DTYPES)
    _, N, C = x.shape
    checks.check_size(op, "x's C", C, least=1)
    checks.check_size(op, "x's N", N, least=1)
    checks.check_rank(op, "fc1_weight", fc1_weight, "(D, C)")
    D = fc1_weight.shape[0]
    checks.check_size(op, "fc1_weight's D", D, least=1)
    for name, tensor, form, shape in (
        ("fc1_weight", fc1_weight, "(D, C)", (D, C)),
        ("fc1_bias", fc1_bias, "(D,)", (D,)),
        ("dw_weight", dw_weight, "(D, 1, 3, 3)", (D, 1, 3, 3)),
        ("dw_bias", dw_bias, "(D,)", (D,)),
        ("fc2_weight", fc2_weight, "(C, D)", (C, D)),
        ("fc2_bias", fc2_bias, "(C,)", (C,)),
    ):
        if tensor is None and name not in ("fc1_weight", "fc2_weight"):
            continue
        checks.check_shape(op, name, tensor, form, shape)
        assert tensor is not None  # or the check of its shape had raised
        checks.check_like(op, name, tensor, "x", x)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    if dw_weight is not None:
        checks.check_map(op, x, H, W)
    elif dw_bias is not None or relu_before_conv:
        name = "dw_bias" if dw_bias is not None else "relu_before_conv"
        raise ValueError(f"{op}: {name} is given, but dw_weight is None")
