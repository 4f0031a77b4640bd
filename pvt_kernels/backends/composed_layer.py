"""The whole layer of a backend that computes its reduction and its attention one by one."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor


class ComposedLayer:
    """`forward` and `backward` of sr_attention from those of the two ops' modules."""

    def __init__(
        self,
        reduction: ModuleType,
        attention: ModuleType,
        H: int,
        W: int,
        heads: int,
        scale: float,
        eps: float,
    ) -> None:
        self.reduction, self.attention = reduction, attention
        self.size, self.heads, self.scale, self.eps = (H, W), heads, scale, eps

    def forward(
        self,
        x: Tensor,
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
        save: bool,
    ) -> tuple[Tensor | None, ...]:
        """The result; with `save` also y, normalized, rstd, kv, o and lse, or None."""
        y, normalized, rstd = x, None, None
        if conv_weight is not None:
            vectors = (conv_bias, norm_weight, norm_bias)
            y, normalized, rstd = self.reduction.forward(
                x, *self.size, conv_weight, *vectors, self.eps
            )
        layers = (q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias)
        result, o, kv, lse = self.attention.forward(x, y, *layers, self.heads, self.scale, save)
        if not save:
            return (result,)
        return result, None if conv_weight is None else y, normalized, rstd, kv, o, lse

    def backward(
        self,
        dresult: Tensor,
        x: Tensor,
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
        y: Tensor | None,
        normalized: Tensor | None,
        rstd: Tensor | None,
        kv: Tensor,
        o: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x and of the parameters, in the order in which `forward` takes them."""
        inputs = x if y is None else y
        layers = (q_weight, q_bias, kv_weight, out_weight)
        dx, dy, *dlayers = self.attention.backward(
            dresult, x, inputs, *layers, o, kv, lse, self.scale
        )
        if conv_weight is None:
            dreduction = (None,) * 4
        else:
            dy, *dreduction = self.reduction.backward(
                dy, x, *self.size, conv_weight, norm_weight, normalized, rstd
            )
        biases = (q_bias, kv_bias, out_bias)
        dlayers[1::2] = [
            None if t is None else d for t, d in zip(biases, dlayers[1::2], strict=True)
        ]
        return dx.add_(dy), *dreduction, *dlayers
