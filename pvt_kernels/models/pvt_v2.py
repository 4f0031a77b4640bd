"""PVTv2 (Wang et al., Computational Visual Media 2022, https://arxiv.org/abs/2106.13797)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pvt_kernels.models.blocks import NORM_EPS, init_conv, init_linear
from pvt_kernels.models.pyramid import Config, Pyramid

_WIDTHS = (64, 128, 320, 512)

CONFIGS = {
    "pvt_v2_b0": Config((32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "pvt_v2_b1": Config(_WIDTHS, depths=(2, 2, 2, 2)),
    "pvt_v2_b2": Config(_WIDTHS, depths=(3, 4, 6, 3)),
    "pvt_v2_b2_linear": Config(_WIDTHS, depths=(3, 4, 6, 3), linear=True),
    "pvt_v2_b3": Config(_WIDTHS, depths=(3, 4, 18, 3)),
    "pvt_v2_b4": Config(_WIDTHS, depths=(3, 8, 27, 3)),
    "pvt_v2_b5": Config(_WIDTHS, depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}


class PyramidVisionTransformerV2(Pyramid):
    """PVTv2, as a classifier or as a feature pyramid; parameter names are the original code's.

    The pyramid's maps are the stages' normed outputs, as in the original detection code. It loads
    classifier checkpoints with strict=True, leaving out their head.*.

    Args:
        config: the variant.
        num_classes: size of the head; 0 for none. Not used with features_only.
        features_only: return the stages' maps instead of class scores.
        out_indices: with features_only, the stages whose maps are returned, negative ones from the
            end, or how many of the last; None for all. Those behind the last of them are not built.
        in_chans: channels of the images.
        global_pool: "avg" averages the last map for the head, "" leaves it.
        drop_rate: dropout after the projections and in the MLPs.
        attn_drop_rate: dropout of attention probabilities.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        head_drop_rate: dropout of what the head reads.

    Raises:
        ValueError: num_classes or a rate is out of range.
    """

    pools = ("avg", "")

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        features_only: bool = False,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] | None = None,
        global_pool: str | None = None,
        head_drop_rate: float = 0.0,
    ) -> None:
        # the padded patch convolutions round up, so ceil(size / stride) must reach sr_ratio;
        # linear SRA pools maps of any size
        sr_ratios = (1, 1, 1, 1) if config.linear else config.sr_ratios
        super().__init__(
            config,
            overlapping=True,
            min_size=max(s * (r - 1) + 1 for s, r in zip(config.strides, sr_ratios, strict=True)),
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
        for i, dim in enumerate(config.embed_dims):
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=NORM_EPS))
        self.apply(init_linear)
        self.apply(init_conv)
        self._drop_stages(max(self.out_indices) + 1)

    def no_weight_decay(self) -> set[str]:
        """Return the names that the original recipe trains without weight decay.

        They are the original's, which lists PVT's names: no parameter of PVTv2 bears one.
        """
        return {"pos_embed1", "pos_embed2", "pos_embed3", "pos_embed4", "cls_token"}

    def _end(self, i: int, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, f"norm{i + 1}")(x)

    def _features(self, maps: dict[int, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        return maps[3]

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def pvt_v2_b0(**kwargs: Any) -> PyramidVisionTransformerV2:
    """Build PVTv2-B0: 3.7 M parameters. Takes PyramidVisionTransformerV2's keyword arguments."""
    return PyramidVisionTransformerV2(CONFIGS["pvt_v2_b0"], **kwargs)


def pvt_v2_b1(**kwargs: Any) -> PyramidVisionTransformerV2:
    """Build PVTv2-B1: 14.0 M parameters. Takes PyramidVisionTransformerV2's keyword arguments."""
    return PyramidVisionTransformerV2(CONFIGS["pvt_v2_b1"], **kwargs)


def pvt_v2_b2(**kwargs: Any) -> PyramidVisionTransformerV2:
    """Build PVTv2-B2: 25.4 M parameters. Takes PyramidVisionTransformerV2's keyword arguments."""
    return PyramidVisionTransformerV2(CONFIGS["pvt_v2_b2"], **kwargs)


def pvt_v2_b2_linear(**kwargs: Any) -> PyramidVisionTransformerV2:
    """Build PVTv2-B2-Li, the original code's pvt_v2_b2_li: 22.6 M parameters, linear SRA.

    Takes PyramidVisionTransformerV2's keyword arguments.
    """
    return PyramidVisionTransformerV2(CONFIGS["pvt_v2_b2_linear"], **kwargs)


def pvt_v2_b3(**kwargs: Any) -> PyramidVisionTransformerV2:
    """Build PVTv2-B3: 45.2 M parameters. Takes PyramidVisionTransformerV2's keyword arguments."""
    return PyramidVisionTransformerV2(CONFIGS["pvt_v2_b3"], **kwargs)


def pvt_v2_b4(**kwargs: Any) -> PyramidVisionTransformerV2:
    """Build PVTv2-B4: 62.6 M parameters. Takes PyramidVisionTransformerV2's keyword arguments."""
    return PyramidVisionTransformerV2(CONFIGS["pvt_v2_b4"], **kwargs)


def pvt_v2_b5(**kwargs: Any) -> PyramidVisionTransformerV2:
    """Build PVTv2-B5: 82.0 M parameters. Takes PyramidVisionTransformerV2's keyword arguments."""
    return PyramidVisionTransformerV2(CONFIGS["pvt_v2_b5"], **kwargs)
