"""Stand-ins for attention modules whose libraries don't install here.

Each has the child modules, attributes and signature of the class that its docstring names, and
computes that class's formula; the code is this package's own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def reduced(module: nn.Module, x: Tensor, H: int, W: int) -> Tensor:
    """LayerNorm(Conv2d(x)) on tokens, where the module has `sr` and `norm`."""
    if module.sr_ratio == 1:
        return x
    image = x.transpose(1, 2).unflatten(2, (H, W))
    return module.norm(module.sr(image).flatten(2).transpose(1, 2))


def add_reduction(
    module: nn.Module, dim: int, sr_ratio: int, norm: nn.Module | None = None
) -> None:
    module.sr_ratio = sr_ratio
    if sr_ratio > 1:
        module.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
        module.norm = norm or nn.LayerNorm(dim, eps=1e-6)


class PvtAttention(nn.Module):
    """Attention of classification/pvt.py in whai362/PVT, with forward(x, H, W)."""

    def __init__(self, dim=32, num_heads=2, sr_ratio=2, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        add_reduction(self, dim, sr_ratio)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        heads = (self.num_heads, self.dim // self.num_heads)
        q = self.q(x).unflatten(-1, heads).transpose(1, 2)
        kv = self.kv(reduced(self, x, H, W))
        k, v = kv.unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((q @ k.mT * self.scale).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


class PvtV2LinearAttention(PvtAttention):
    """Attention of classification/pvt_v2.py in whai362/PVT with linear=True."""

    def __init__(self, dim=32, num_heads=2, activation=nn.GELU):
        super().__init__(dim, num_heads, sr_ratio=1)
        self.linear = True
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.sr = nn.Conv2d(dim, dim, kernel_size=1)
        self.norm = nn.LayerNorm(dim)
        self.act = activation()

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        heads = (self.num_heads, self.dim // self.num_heads)
        q = self.q(x).unflatten(-1, heads).transpose(1, 2)
        pooled = self.sr(self.pool(x.transpose(1, 2).unflatten(2, (H, W))))
        kv = self.kv(self.act(self.norm(pooled.flatten(2).transpose(1, 2))))
        k, v = kv.unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((q @ k.mT * self.scale).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


class OpenMMLabAttention(nn.Module):
    """mmdet's SpatialReductionAttention, which is mmseg's EfficientMultiheadAttention too.

    mmdet/models/backbones/pvt.py and mmseg/models/backbones/mit.py, on mmcv's MultiheadAttention.
    Only the norm differs: by configuration, LayerNorm with an eps of 1e-6 in mmseg's.
    """

    def __init__(
        self, embed_dims=32, num_heads=2, sr_ratio=2, attn_drop=0.0, proj_drop=0.0, drop_path=0.0,
        qkv_bias=True, batch_first=True, norm=None, **attn,
    ):  # fmt: skip
        super().__init__()
        self.embed_dims, self.num_heads, self.batch_first = embed_dims, num_heads, batch_first
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, attn_drop, bias=qkv_bias, **attn)
        self.proj_drop = nn.Dropout(proj_drop)
        self.dropout_layer = nn.Dropout(drop_path) if drop_path else nn.Identity()
        add_reduction(self, embed_dims, sr_ratio, norm)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor | None = None
    ) -> Tensor:
        y = reduced(self, x, *hw_shape).transpose(0, 1)
        out = self.attn(query=x.transpose(0, 1), key=y, value=y)[0].transpose(0, 1)
        return (x if identity is None else identity) + self.dropout_layer(self.proj_drop(out))


class DWConv(nn.Module):
    """DWConv of classification/pvt_v2.py in whai362/PVT."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return self.dwconv(x.transpose(1, 2).unflatten(2, (H, W))).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Mlp of classification/pvt_v2.py in whai362/PVT, and without its convolution."""

    def __init__(self, dim=32, hidden=64, drop=0.0, conv=True, linear=False):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        if conv:
            self.dwconv = DWConv(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)
        if linear:
            self.relu = nn.ReLU()

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = self.fc1(x)
        if hasattr(self, "relu"):
            x = self.relu(x)
        if hasattr(self, "dwconv"):
            x = self.dwconv(x, H, W)
        return self.drop(self.fc2(self.drop(self.act(x))))


class OpenMMLabMixFFN(nn.Module):
    """mmdet's MixFFN of mmdet/models/backbones/pvt.py, and mmseg's of .../mit.py.

    mmseg's always convolves, and keeps its activation as a child too.
    """

    def __init__(self, dim=32, hidden=64, ffn_drop=0.0, drop_path=0.0, use_conv=True, mmseg=False):
        super().__init__()
        activate, drop = nn.GELU(), nn.Dropout(ffn_drop)
        if mmseg:
            self.activate = activate
        layers = [nn.Conv2d(dim, hidden, 1), activate, drop, nn.Conv2d(hidden, dim, 1), drop]
        if use_conv:
            layers.insert(1, nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden))
        self.layers = nn.Sequential(*layers)
        self.dropout_layer = nn.Dropout(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor | None = None
    ) -> Tensor:
        out = self.layers(x.transpose(1, 2).unflatten(2, hw_shape))
        out = out.flatten(2).transpose(1, 2).contiguous()
        return (x if identity is None else identity) + self.dropout_layer(out)


class Block(nn.Module):
    """A residual block of any attention, at an odd size: a model for tests."""

    H, W = 9, 7

    def __init__(self, attention: nn.Module, dim: int = 32):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attention
        self.mlp = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        size = (self.H, self.W)
        if isinstance(self.attn, OpenMMLabAttention):
            x = self.attn(self.norm1(x), size, identity=x)
        else:
            x = x + self.attn(self.norm1(x), *size)
        return x + F.gelu(self.mlp(self.norm2(x)))
