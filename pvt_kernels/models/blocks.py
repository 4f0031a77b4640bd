"""Building blocks that PVT and PVTv2 share."""

import math

import torch
from torch import nn

from pvt_kernels.feed_forward_parts import FeedForwardParts, forward
from pvt_kernels.layers import SRAttention

# The blocks' and the output norms use this eps; the norms inside the patch embedding and the
# attention keep PyTorch's default of 1e-5, as in the original code.
NORM_EPS = 1e-6


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): drops a residual branch, sample by sample.

    A sample's branch is kept with probability `1 - p` and scaled by `1 / (1 - p)`; in evaluation
    mode the branch passes unchanged.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale or drop each sample of x, of shape (B, ...)."""
        if self.p == 0 or not self.training:
            return x
        keep = 1 - self.p
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"p={self.p:.3f}"


class PatchEmbed(nn.Module):
    """Strided convolution from a feature map to normalised tokens.

    PVT's patches touch (kernel = stride, no padding: incomplete patches are left out), PVTv2's
    overlap (kernel > stride, padded by kernel // 2).
    """

    def __init__(self, in_chans: int, embed_dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        padding = 0 if kernel_size == stride else kernel_size // 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Map x (B, in_chans, h, w) to tokens (B, H*W, embed_dim), H and W."""
        x = self.proj(x)
        H, W = x.shape[-2:]
        return self.norm(x.flatten(2).transpose(1, 2)), H, W


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution on tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: torch.Tensor, H: int, W: int) -> torch.Tensor:
        """Convolve x (B, H*W, dim)."""
        x = x.transpose(1, 2).unflatten(2, (H, W))
        return self.dwconv(x).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """PVT's feed-forward network."""

    def __init__(self, dim: int, hidden_dim: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor, H: int, W: int) -> torch.Tensor:
        """Map x (B, N, dim) to the same shape; H and W are ConvMlp's."""
        result = forward(self._parts(), x, H, W)
        return self.layer_by_layer(x, H, W) if result is None else self.drop(result)

    def layer_by_layer(self, x: torch.Tensor, H: int, W: int) -> torch.Tensor:
        """The same, by PyTorch's layers one after the other."""
        return self.drop(self.fc2(self.drop(self.act(self._convolve(self.fc1(x), H, W)))))

    def _parts(self) -> FeedForwardParts:
        return FeedForwardParts(self.fc1, self.fc2, self.act, self.drop)

    def _convolve(self, x: torch.Tensor, H: int, W: int) -> torch.Tensor:
        return x


class ConvMlp(Mlp):
    """PVTv2's feed-forward network: a depthwise convolution between the layers.

    With `relu`, as in the variants with linear SRA, a ReLU precedes the convolution.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float, relu: bool) -> None:
        super().__init__(dim, hidden_dim, drop)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def _parts(self) -> FeedForwardParts:
        # spelt out, since torch.compile before PyTorch 2.9 can't trace a tuple's _replace
        return FeedForwardParts(
            *(self.fc1, self.fc2, self.act, self.drop),
            conv=self.dwconv.dwconv,
            before_conv=self.relu,
            bypassed=(self.dwconv,),
        )

    def _convolve(self, x: torch.Tensor, H: int, W: int) -> torch.Tensor:
        return self.dwconv(self.relu(x), H, W)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then `mlp`, each a residual branch."""

    def __init__(self, attn: SRAttention, mlp: Mlp, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(attn.dim, eps=NORM_EPS)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(attn.dim, eps=NORM_EPS)
        self.mlp = mlp

    def forward(self, x: torch.Tensor, H: int, W: int) -> torch.Tensor:
        """Map tokens x (B, N, C) of an H x W map to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x), H, W))
        return x + self.drop_path(self.mlp(self.norm2(x), H, W))


def tokens_to_map(x: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """Turn tokens (B, H*W, C) into a contiguous map (B, C, H, W)."""
    return x.transpose(1, 2).unflatten(2, (H, W)).contiguous()


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as PVT does: weights truncated normal (std 0.02), biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv(module: nn.Module) -> None:
    """Initialise a convolution as PVTv2 does: weights normal by fan-out, biases zero."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
