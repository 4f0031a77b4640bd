"""A whole layer, by a dotted name that the worker can call."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels import SRAttention


def with_gradients(dim: int, heads: int, sr_ratio: int, H: int, W: int) -> list[Tensor]:
    """The output of a layer on random tokens, and the gradients of all that it depends on."""
    torch.manual_seed(0)
    layer = SRAttention(dim, heads, qkv_bias=True, sr_ratio=sr_ratio)
    x = torch.randn(2, H * W, dim, requires_grad=True)
    out = layer(x, H, W)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])]
