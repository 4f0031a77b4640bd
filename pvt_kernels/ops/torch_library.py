"""How the ops' functions become operators of PyTorch.

As torch.library.custom_op does it, but with less in between: for a small image, a call through
that takes as long as the kernel itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from pvt_kernels.backends import transforms

_library = torch.library.Library("pvt_kernels", "FRAGMENT")


def operator(
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., tuple[Tensor | None, ...]] | None = None,
) -> Callable[[Callable], OpOverload]:
    """Decorate a function that becomes torch.ops.pvt_kernels.NAME, on tensors of every device.

    It gets all arguments by position, writes to none of them, and returns new tensors. It has no
    forward-mode derivative, and raises where one is asked for: the ops call it under no transform,
    since `choose` then gives them a backend of PyTorch's own functions.

    Args:
        setup_context: called with ctx, inputs and output to save what the backward needs.
        backward: like that of torch.autograd.Function; without it, that of the results raises
            RuntimeError, which is what second derivatives come to.
    """

    def define(function: Callable) -> OpOverload:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        op = getattr(torch.ops.pvt_kernels, name).default
        _library.impl(name, _differentiable(op, setup_context, backward), "Autograd")
        return op

    return define


def fake(op: OpOverload) -> Callable[[Callable], Callable]:
    """Decorate a function that gives the results' shapes, checking the arguments as `op` does."""
    return torch.library.register_fake(op, lib=_library)


def _differentiable(
    op: OpOverload,
    setup_context: Callable[..., None] | None,
    backward: Callable[..., tuple[Tensor | None, ...]] | None,
) -> Callable:
    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*inputs)
            if setup_context is not None:
                setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *gradients):
            if backward is None:
                raise RuntimeError(
                    f"{op} has no derivative, and so create_graph=True gives no second derivative: "
                    "transforms of torch.func, such as hessian or grad of grad, compute it"
                )
            return backward(ctx, *gradients)

    def call(*inputs):
        # a tangent would be lost without a word
        if transforms.transform() and any(map(_is_transformed, inputs)):
            raise RuntimeError(f"{op} can't be called while {transforms.transform()}")
        if torch.is_grad_enabled() and any(
            isinstance(t, Tensor) and t.requires_grad for t in inputs
        ):
            return Differentiable.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    return call


def _is_transformed(value: object) -> bool:
    """Whether it is a tensor that torch.func has wrapped, or one with a tangent."""
    return isinstance(value, Tensor) and (
        torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]
        or forward_ad.unpack_dual(value).tangent is not None
    )
