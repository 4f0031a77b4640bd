"""Pyramid Vision Transformer (Wang et al., ICCV 2021, https://arxiv.org/abs/2102.12122)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pvt_kernels.backends import transforms
from pvt_kernels.models.blocks import NORM_EPS, init_linear
from pvt_kernels.models.pyramid import Config, Pyramid

_WIDTHS = (64, 128, 320, 512)

CONFIGS = {
    "pvt_tiny": Config(_WIDTHS, depths=(2, 2, 2, 2)),
    "pvt_small": Config(_WIDTHS, depths=(3, 4, 6, 3)),
    "pvt_medium": Config(_WIDTHS, depths=(3, 4, 18, 3)),
    "pvt_large": Config(_WIDTHS, depths=(3, 8, 27, 3)),
    "pvt_huge": Config((128, 256, 512, 768), depths=(3, 10, 60, 3), num_heads=(2, 4, 8, 12)),
}


class PyramidVisionTransformer(Pyramid):
    """PVT, as a classifier or as a feature pyramid; parameter names are the original code's.

    The pyramid's maps are the stages' outputs, without norm and without the class token, as in
    the original detection code. It loads classifier checkpoints with strict=True, leaving out
    their head.*, norm.* and cls_token; `pos_embed4` keeps its row for the class token, which then
    takes no part.

    Position embeddings belong to the grid that `img_size` gives; on any other grid they are
    interpolated. (The original code leaves them as they are on other grids of 56 * 56 positions,
    and so fails on, for example, 448 x 448 images.)

    Args:
        config: the variant.
        num_classes: size of the head; 0 for none. Not used with features_only.
        features_only: return the stages' maps instead of class scores.
        out_indices: with features_only, the stages whose maps are returned, negative ones from the
            end, or how many of the last; None for all. Those behind the last of them are not built.
        img_size: side, or (height, width), of the images that the position embeddings are for.
        in_chans: channels of the images.
        global_pool: "token" takes the class token for the head, "avg" averages the others,
            "" leaves them all.
        drop_rate: dropout after the position embeddings, the projections and in the MLPs.
        attn_drop_rate: dropout of attention probabilities.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        head_drop_rate: dropout of what the head reads.

    Raises:
        ValueError: num_classes, img_size or a rate is out of range.
    """

    pools = ("token", "avg", "")
    classifier_names = frozenset({"head", "norm", "cls_token"})
    pos_embed4: nn.Parameter

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        features_only: bool = False,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] | None = None,
        global_pool: str | None = None,
        head_drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            config,
            overlapping=False,
            # patches and reduction windows are left out where incomplete: one must be whole
            min_size=max(s * r for s, r in zip(config.strides, config.sr_ratios, strict=True)),
            num_classes=num_classes,
            features_only=features_only,
            out_indices=out_indices,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            head_drop_rate=head_drop_rate,
        )
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < self.min_size:
            raise ValueError(f"img_size must be at least {self.min_size}, got {img_size}")
        self.grids = [(height // stride, width // stride) for stride in self.strides]
        for i, (H, W) in enumerate(self.grids):
            positions = H * W + 1 if i == 3 else H * W
            pos_embed = nn.Parameter(torch.empty(1, positions, config.embed_dims[i]))
            self.register_parameter(f"pos_embed{i + 1}", pos_embed)
            nn.init.trunc_normal_(pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        if not features_only:
            self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS)
            self.cls_token = nn.Parameter(torch.empty(1, 1, self.num_features))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)
        self._drop_stages(max(self.out_indices) + 1)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that the original recipe trains without weight decay."""
        return {"cls_token"}

    def _positions(self, stage: int, H: int, W: int) -> torch.Tensor:
        """Return stage's position embeddings (1, H*W, C), without the class token's."""
        pos_embed = getattr(self, f"pos_embed{stage + 1}")
        if stage == 3:
            pos_embed = pos_embed[:, 1:]
        grid = self.grids[stage]
        # a symbol of torch.fx equals nothing; where the sizes agree, the interpolation is exact
        if not transforms.is_symbol(H) and grid == (H, W):
            return pos_embed
        pos_embed = pos_embed.transpose(1, 2).unflatten(2, grid)
        pos_embed = F.interpolate(pos_embed, size=(H, W), mode="bilinear", align_corners=False)
        return pos_embed.flatten(2).transpose(1, 2)

    def _embed(self, i: int, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        x, H, W = super()._embed(i, x)
        x = x + self._positions(i, H, W)
        if i == 3 and not self.features_only:
            cls_token = self.cls_token + self.pos_embed4[:, :1]
            x = torch.cat((cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        return self.pos_drop(x), H, W

    def _features(self, maps: dict[int, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(tokens)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(dim=1)


def pvt_tiny(**kwargs: Any) -> PyramidVisionTransformer:
    """Build PVT-Tiny: 13.2 M parameters. Takes PyramidVisionTransformer's keyword arguments."""
    return PyramidVisionTransformer(CONFIGS["pvt_tiny"], **kwargs)


def pvt_small(**kwargs: Any) -> PyramidVisionTransformer:
    """Build PVT-Small: 24.5 M parameters. Takes PyramidVisionTransformer's keyword arguments."""
    return PyramidVisionTransformer(CONFIGS["pvt_small"], **kwargs)


def pvt_medium(**kwargs: Any) -> PyramidVisionTransformer:
    """Build PVT-Medium: 44.2 M parameters. Takes PyramidVisionTransformer's keyword arguments."""
    return PyramidVisionTransformer(CONFIGS["pvt_medium"], **kwargs)


def pvt_large(**kwargs: Any) -> PyramidVisionTransformer:
    """Build PVT-Large: 61.4 M parameters. Takes PyramidVisionTransformer's keyword arguments."""
    return PyramidVisionTransformer(CONFIGS["pvt_large"], **kwargs)


def pvt_huge(**kwargs: Any) -> PyramidVisionTransformer:
    """Build the original code's pvt_huge_v2. Takes PyramidVisionTransformer's keyword arguments."""
    return PyramidVisionTransformer(CONFIGS["pvt_huge"], **kwargs)
