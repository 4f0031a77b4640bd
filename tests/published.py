"""The published formula of spatial-reduction attention, transcribed step by step.

Equations 2 to 5 of Wang et al., "Pyramid Vision Transformer", ICCV 2021, and figure 3 of Wang et
al., "PVTv2", 2022, for the linear form; on a layer's parameters, with nothing of this package.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def sra(layer: nn.Module, x: Tensor, H: int, W: int) -> Tensor:
    """What the layer's forward(x, H, W) must return in eval mode."""
    B, N, C = x.shape
    heads = layer.num_heads

    def split_heads(t: Tensor) -> Tensor:
        return t.reshape(B, t.shape[1], heads, C // heads).permute(0, 2, 1, 3)

    tokens = x
    if layer.linear or layer.sr_ratio > 1:
        image = x.permute(0, 2, 1).reshape(B, C, H, W)
        if layer.linear:
            image = F.adaptive_avg_pool2d(image, 7)
        stride = 1 if layer.linear else layer.sr_ratio
        image = F.conv2d(image, layer.sr.weight, layer.sr.bias, stride=stride)
        tokens = image.flatten(2).permute(0, 2, 1)
        tokens = F.layer_norm(tokens, (C,), layer.norm.weight, layer.norm.bias, layer.norm.eps)
        if layer.linear:
            tokens = F.gelu(tokens)
    key_value = F.linear(tokens, layer.kv.weight, layer.kv.bias)
    k, v = split_heads(key_value[..., :C]), split_heads(key_value[..., C:])
    q = split_heads(F.linear(x, layer.q.weight, layer.q.bias))
    weights = (q @ k.transpose(-2, -1) * layer.scale).softmax(dim=-1)
    out = (weights @ v).permute(0, 2, 1, 3).reshape(B, N, C)
    return F.linear(out, layer.proj.weight, layer.proj.bias)
