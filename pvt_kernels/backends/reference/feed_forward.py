"""The feed-forward network in plain PyTorch: the definition, and the formulas of the kernels.

    h = x W1^T + b1,  c = conv(relu(h)),  a = act(c),  y = a W2^T + b2                   (forward)
    da = dy W2,  dc = da * act'(c),  dh = conv^T(dc) * (h > 0),  dx = dh W1              (backward)
    dW2 = dy^T a,  dW1 = dh^T x,  and sums of dy, dc and dh over the tokens for the biases

where there is a convolution, and a ReLU before it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}


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
    activation: str,
    relu_before_conv: bool,
    dropout_p: float = 0.0,
) -> Tensor:
    """Shapes as the op has them; differentiable, every step in the inputs' dtype."""
    hidden = F.linear(x, fc1_weight, fc1_bias)
    if relu_before_conv:
        hidden = F.relu(hidden)
    if dw_weight is not None:
        hidden = _tokens(_convolve(_image(hidden, H, W), dw_weight, dw_bias))
    hidden = ACTIVATIONS[activation](hidden)
    if dropout_p > 0:
        hidden = F.dropout(hidden, dropout_p)
    return F.linear(hidden, fc2_weight, fc2_bias)


def forward(x: Tensor, H: int, W: int, *rest) -> Tensor:
    """As feed_forward_forward has it; accumulated in fp32, or fp64 for fp64 inputs."""
    *layers, activation, relu_before_conv = rest
    x, *layers = (_exact(t) for t in (x, *layers))
    result = feed_forward(x, H, W, *layers, activation, relu_before_conv)
    return result.to(rest[0].dtype)


def backward(
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
) -> tuple[Tensor, ...]:
    """The gradients, as feed_forward_backward has them."""
    dtype = x.dtype
    layers = (fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight)
    dy, x, w1, b1, dw, db, w2 = (_exact(t) for t in (dresult, x, *layers))
    h = F.linear(x, w1, b1)
    conv = x.new_empty(0), x.new_empty(0)
    if dw is None:
        dh, a = _activation_backward(dy @ w2, h, activation)
    else:
        image = _image(F.relu(h) if relu_before_conv else h, H, W)
        c = _convolve(image, dw, db)
        dc, a = _activation_backward(_image(dy @ w2, H, W), c, activation)
        options = {"padding": 1, "groups": len(dw)}
        conv = conv2d_weight(image, dw.shape, dc, **options), dc.sum((0, 2, 3))
        dh, a = _tokens(conv2d_input(image.shape, dw, dc, **options)), _tokens(a)
        if relu_before_conv:
            dh = dh * (h > 0)
    gradients = (
        *(dh @ w1, _products(dh, x), dh.sum((0, 1))),
        *conv,
        *(_products(dy, a), dy.sum((0, 1))),
    )
    return tuple(g.to(dtype).contiguous() for g in gradients)


def _activation_backward(da: Tensor, c: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradient of c, and the activation of it."""
    if activation == "relu":
        return da * (c > 0), F.relu(c)
    cdf = torch.special.ndtr(c)
    density = torch.exp(-c.square() / 2) / math.sqrt(2 * math.pi)
    return da * (cdf + c * density), c * cdf


def _exact(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.promote_types(t.dtype, torch.float32))


def _convolve(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(image, weight, bias, padding=1, groups=len(weight))


def _image(x: Tensor, H: int, W: int) -> Tensor:
    """(B, H*W, D) -> (B, D, H, W)."""
    B, _, D = x.shape
    return x.transpose(1, 2).reshape(B, D, H, W)


def _tokens(image: Tensor) -> Tensor:
    """The inverse of _image."""
    return image.flatten(2).transpose(1, 2)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Over all tokens of all images, (D_a, D_b)."""
    return a.flatten(0, 1).t() @ b.flatten(0, 1)
