"""The spatial reduction op: checks, choice of a backend, operators and their autograd."""

from __future__ import annotations

import math
from operator import index

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from pvt_kernels.backends import SpatialReductionInputs, choose, get, transforms
from pvt_kernels.backends.tensors import memory_format
from pvt_kernels.ops import autocast, checks
from pvt_kernels.ops.torch_library import fake, operator


def spatial_reduction(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm(Conv2d(x, kernel = stride = R)) on tokens: equation 5 of Wang et al., ICCV 2021.

    Reads and writes the token layout, with no permute to NCHW around it. The last H mod R rows
    and W mod R columns belong to no patch and don't count. Under autocast x, weight and bias are
    cast to its dtype; the LayerNorm's parameters stay as they are.

    Args:
        x: tokens (B, H*W, C), row-major over (H, W), in float16, bfloat16, float32 or float64;
            B may be 0.
        H, W: height and width of the map in tokens, each at least R.
        weight: (C, C, R, R), as torch.nn.Conv2d has it, with x's dtype and device.
        bias: (C,), with x's dtype and device.
        norm_weight, norm_bias: (C,), both in x's dtype or both in float32, on x's device.
        eps: added to the variance, above 0.

    Returns:
        (B, (H // R) * (W // R), C) in x's dtype.

    Raises:
        ValueError: for shapes, devices or numbers that don't fit; the message says which.
        TypeError: for dtypes that don't fit.
        RuntimeError: if a forced backend can't run the call.
    """
    tensors = (x, weight, bias, norm_weight, norm_bias)
    if has_torch_function_variadic(*tensors):
        parameters = (weight, bias, norm_weight, norm_bias)
        return handle_torch_function(spatial_reduction, tensors, x, H, W, *parameters, eps)
    checks.check_rank("spatial_reduction", "x", x, "(B, H*W, C)")
    x, weight, bias = autocast.cast(x, weight, bias)
    parameters = (weight, bias, norm_weight, norm_bias, eps)
    with transforms.untraced():
        check(x, *transforms.integers(H, W), *parameters)  # pyright: ignore[reportCallIssue]
        C, R = index(x.shape[-1]), index(weight.shape[-1])
    name = choose(SpatialReductionInputs, x.device, x.dtype, C, R)
    arguments = (x, H, W, *parameters)
    backend = get(name)
    if backend.composite:
        return backend.modules["spatial_reduction"].spatial_reduction(*arguments)
    return torch.ops.pvt_kernels.spatial_reduction_forward(*arguments, name)[0]


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.H, ctx.W, weight, _, norm_weight, _, _, ctx.backend = inputs
    _, normalized, rstd = output
    ctx.mark_non_differentiable(normalized, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, norm_weight, normalized, rstd)


def _backward(ctx, dy: Tensor | None, *_):
    if dy is None:
        return (None,) * 9
    x, weight, norm_weight, normalized, rstd = ctx.saved_tensors
    dx, *dparameters = torch.ops.pvt_kernels.spatial_reduction_backward(
        dy, x, ctx.H, ctx.W, weight, norm_weight, normalized, rstd, ctx.backend
    )
    return dx, None, None, *dparameters, None, None


@operator(_setup_context, _backward)
def spatial_reduction_forward(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, M, C) in x's dtype; the normalised rows before gamma and beta (B, M, C); rstd (B, M).

    The last two are what the backward needs, in fp32, or fp64 for fp64 inputs. All contiguous.
    The arguments are those that `spatial_reduction` has checked.
    """
    forward = get(backend).modules["spatial_reduction"].forward
    with autocast.suspended(x):
        return forward(x, H, W, weight, bias, norm_weight, norm_bias, eps)


@fake(spatial_reduction_forward)
def _(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check(x, H, W, weight, bias, norm_weight, norm_bias, eps)
    B, _, C = x.shape
    M = (H // weight.shape[-1]) * (W // weight.shape[-1])
    saved = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(B, M, C), x.new_empty(B, M, C, dtype=saved), x.new_empty(B, M, dtype=saved)


@operator()
def spatial_reduction_backward(
    dy: Tensor,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    norm_weight: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias, dnorm_weight, dnorm_bias. `dy` may have any strides.

    The rest is what the forward took and returned. All results are contiguous, but dweight in the
    memory format channels_last where weight is.
    """
    op = "spatial_reduction_backward"
    checks.check_shape(op, "dy", dy, "(B, M, C)", (*normalized.shape,))
    checks.check_like(op, "dy", dy, "x", x)
    backward = get(backend).modules["spatial_reduction"].backward
    with autocast.suspended(x):
        dx, dweight, *dvectors = backward(dy, x, H, W, weight, norm_weight, normalized, rstd)
    return dx, dweight.contiguous(memory_format=memory_format(weight)), *dvectors


@fake(spatial_reduction_backward)
def _(
    dy: Tensor,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    norm_weight: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    C = x.shape[-1]
    return (
        x.new_empty(x.shape),
        torch.empty_like(weight, memory_format=memory_format(weight)),
        weight.new_empty(C),
        norm_weight.new_empty(C),
        norm_weight.new_empty(C),
    )


@register_flop_formula(torch.ops.pvt_kernels.spatial_reduction_forward)
def _forward_flops(x_shape, H, W, weight_shape, *args, **kwargs) -> int:
    R = weight_shape[-1]
    return 2 * x_shape[0] * (H // R) * (W // R) * math.prod(weight_shape)


@register_flop_formula(torch.ops.pvt_kernels.spatial_reduction_backward)
def _backward_flops(dy_shape, x_shape, H, W, weight_shape, *args, **kwargs) -> int:
    # two products: dX and dWsr
    return 2 * _forward_flops(x_shape, H, W, weight_shape)


def check(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> None:
    op = "spatial_reduction"
    checks.check_rank(op, "x", x, "(B, H*W, C)")
    checks.check_dtype(op, "x", x, checks.DTYPES)
    C = x.shape[-1]
    checks.check_size(op, "x's C", C, least=1)
    checks.check_rank(op, "weight", weight, "(C, C, R, R)")
    R = weight.shape[-1]
    checks.check_size(op, "weight's R", R, least=1)
    checks.check_shape(op, "weight", weight, "(C, C, R, R)", (C, C, R, R))
    checks.check_map(op, x, H, W, least=R)
    for name, tensor in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        checks.check_shape(op, name, tensor, "(C,)", (C,))
    for name, tensor in (("weight", weight), ("bias", bias)):
        checks.check_like(op, name, tensor, "x", x)
    checks.check_device(op, "norm_weight", norm_weight, "x", x)
    checks.check_dtype(op, "norm_weight", norm_weight, (x.dtype, torch.float32))
    checks.check_like(op, "norm_bias", norm_bias, "norm_weight", norm_weight)
    if not eps > 0:
        raise ValueError(f"{op}: eps must be above 0, got {eps}")
