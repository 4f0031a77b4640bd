"""The spatial reduction in plain PyTorch: the definition, and the formulas of the kernels.

With X the (B*M, R*R*C) matrix whose row is one R x R patch, and kernel = stride = R:

    Z = X Wsr + b,  Z^ = (Z - mean(Z)) * rstd(Z),  Y = Z^ * gamma + beta                (forward)
    G = dY * gamma,  dZ = rstd * (G - mean(G) - Z^ * mean(G * Z^))                      (backward)
    dWsr = X^T dZ,  dX = dZ Wsr^T,  dgamma = sum(dY * Z^),  dbeta = sum(dY),  db = sum(dZ)

Patches do not overlap, so every element of dX is written once; the last H mod R rows and W mod R
columns belong to no patch and get zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def spatial_reduction(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    """LayerNorm(Conv2d(x)), differentiable, in the inputs' dtypes. Shapes as the op has them."""
    B, _, C = x.shape
    image = x.transpose(1, 2).reshape(B, C, H, W)
    z = F.conv2d(image, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    y = F.layer_norm(z.to(norm_weight.dtype), (C,), norm_weight, norm_bias, eps)
    return y.to(x.dtype)


def forward(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, M, C), the normalised rows Z^ (B, M, C) and rstd (B, M)."""
    accumulate = torch.promote_types(x.dtype, torch.float32)
    patches = _gather(x, H, W, weight.shape[-1]).to(accumulate)
    z = patches @ _matrix(weight).to(accumulate) + bias
    centred = z - z.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    normalized = centred * rstd
    y = normalized * norm_weight + norm_bias
    return y.to(x.dtype), normalized, rstd.squeeze(-1)


def backward(
    dy: Tensor,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    norm_weight: Tensor,
    normalized: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias, dnorm_weight, dnorm_bias, shaped like what they are gradients of."""
    R = weight.shape[-1]
    accumulate = normalized.dtype
    dy = dy.to(accumulate)
    dnorm_weight, dnorm_bias = (dy * normalized).sum((0, 1)), dy.sum((0, 1))
    g = dy * norm_weight
    dz = g - g.mean(-1, keepdim=True) - normalized * (g * normalized).mean(-1, keepdim=True)
    dz = dz * rstd.unsqueeze(-1)
    dbias = dz.sum((0, 1))
    matrix = _matrix(weight)
    dmatrix = _gather(x, H, W, R).to(accumulate).flatten(0, 1).T @ dz.flatten(0, 1)
    dweight = dmatrix.reshape(R, R, *weight.shape[1::-1]).permute(3, 2, 0, 1)
    dx = _scatter(dz @ matrix.to(accumulate).T, H, W, R)
    return (
        dx.to(x.dtype),
        dweight.to(weight.dtype).contiguous(),
        dbias.to(weight.dtype),
        dnorm_weight.to(norm_weight.dtype),
        dnorm_bias.to(norm_weight.dtype),
    )


def _matrix(weight: Tensor) -> Tensor:
    """(C_out, C, R, R) -> (R*R*C, C_out), rows in the order in which a patch lies in x."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2)


def _gather(x: Tensor, H: int, W: int, R: int) -> Tensor:
    """(B, H*W, C) -> (B, M, R*R*C)."""
    B, _, C = x.shape
    h, w = H // R, W // R
    image = x.reshape(B, H, W, C)[:, : h * R, : w * R]
    patches = image.reshape(B, h, R, w, R, C).transpose(2, 3)
    return patches.reshape(B, h * w, R * R * C)


def _scatter(patches: Tensor, H: int, W: int, R: int) -> Tensor:
    """The transpose of _gather: (B, M, R*R*C) -> (B, H*W, C), zero where no patch lies."""
    B, C = patches.shape[0], patches.shape[-1] // (R * R)
    h, w = H // R, W // R
    image = patches.new_zeros(B, H, W, C)
    blocks = patches.reshape(B, h, w, R, R, C).transpose(2, 3)
    image[:, : h * R, : w * R] = blocks.reshape(B, h * R, w * R, C)
    return image.reshape(B, H * W, C)
