"""What PVT and PVTv2 have in common: the four stages, the classifier and its checkpoints."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pvt_kernels.backends import transforms
from pvt_kernels.layers import SRAttention
from pvt_kernels.models.blocks import Block, ConvMlp, Mlp, PatchEmbed, init_linear


@dataclass(frozen=True)
class Config:
    """One variant; each tuple holds a value for each of the four stages.

    `patch_sizes` are the strides of the patch embeddings, each on the map of the stage before.
    """

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, int, int, int] = (8, 8, 4, 4)
    sr_ratios: tuple[int, int, int, int] = (8, 4, 2, 1)
    linear: bool = False
    patch_sizes: tuple[int, int, int, int] = (4, 2, 2, 2)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the four stages' maps on the image."""
        return tuple(math.prod(self.patch_sizes[: i + 1]) for i in range(4))


class Pyramid(nn.Module):
    """Base of both models: builds the stages, owns the head, and loads checkpoints.

    Attributes:
        features_only: whether forward returns the four stages' maps instead of class scores.
        embed_dims: the channels of the four maps.
        strides: their strides on the image: 4, 8, 16 and 32 but in models without a pyramid.
        num_features: the last stage's channels, which the head reads.
        num_classes: the number of class scores; 0 where there is no head.
        min_size: the smallest image height and width.
    """

    # top-level names in a classifier's checkpoint that a model with features_only has no use for
    classifier_names = frozenset({"head"})
    patch_embed1: PatchEmbed

    def __init__(
        self,
        config: Config,
        *,
        overlapping: bool,
        min_size: int,
        num_classes: int,
        features_only: bool,
        in_chans: int,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no head) or more, got {num_classes}")
        for name, rate in (
            ("drop_rate", drop_rate),
            ("attn_drop_rate", attn_drop_rate),
            ("drop_path_rate", drop_path_rate),
        ):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")
        self.features_only = features_only
        self.embed_dims = config.embed_dims
        self.strides = config.strides
        self.num_features = config.embed_dims[-1]
        self.num_classes = 0 if features_only else num_classes
        self.min_size = min_size

        num_blocks = sum(config.depths)
        drop_paths = iter(drop_path_rate * i / (num_blocks - 1) for i in range(num_blocks))
        for i, dim in enumerate(config.embed_dims):
            stride = config.patch_sizes[i]
            kernel_size = (7 if i == 0 else 3) if overlapping else stride
            patch_embed = PatchEmbed(in_chans, dim, kernel_size, stride)
            blocks = nn.ModuleList()
            for _ in range(config.depths[i]):
                attn = SRAttention(
                    dim,
                    num_heads=config.num_heads[i],
                    qkv_bias=True,
                    attn_drop=attn_drop_rate,
                    proj_drop=drop_rate,
                    sr_ratio=config.sr_ratios[i],
                    linear=config.linear,
                )
                hidden_dim = dim * config.mlp_ratios[i]
                if overlapping:
                    mlp = ConvMlp(dim, hidden_dim, drop_rate, relu=config.linear)
                else:
                    mlp = Mlp(dim, hidden_dim, drop_rate)
                blocks.append(Block(attn, mlp, next(drop_paths)))
            self.add_module(f"patch_embed{i + 1}", patch_embed)
            self.add_module(f"block{i + 1}", blocks)
            in_chans = dim
        if not features_only:
            self.head = self._make_head()

    def _make_head(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, self.num_classes)
        init_linear(head)
        return head

    def get_classifier(self) -> nn.Module:
        """Return the head: a linear layer, or an Identity where num_classes is 0.

        Raises:
            AttributeError: the model was built with features_only=True.
        """
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one for `num_classes` classes, 0 for none.

        Raises:
            ValueError: the model was built with features_only=True, or num_classes is negative.
        """
        if self.features_only:
            raise ValueError("reset_classifier: a model with features_only=True has no classifier")
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no head) or more, got {num_classes}")
        self.num_classes = num_classes
        self.head = self._make_head().to(self.patch_embed1.proj.weight).train(self.training)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Compute what `forward` returns, short of the head: (B, num_features), or the maps."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Classify images, or extract their feature pyramid.

        Args:
            x: images (B, in_chans, H, W); H and W at least `min_size`, each of any size above.

        Returns:
            Class scores (B, num_classes), the features (B, num_features) where num_classes is 0,
            or with features_only four maps (B, embed_dims[i], ...) of the model's strides.

        Raises:
            ValueError: x is no batch of images, or smaller than `min_size`.
        """
        if not transforms.is_symbol(x):
            with transforms.untraced():
                self._check(x)
        features = self.forward_features(x)
        return features if self.features_only else self.head(features)

    def _check(self, x: torch.Tensor) -> None:
        if x.ndim != 4:
            raise ValueError(
                f"x must be a batch of images (B, in_chans, H, W), got shape {tuple(x.shape)}"
            )
        H, W = x.shape[-2:]
        if min(H, W) < self.min_size:
            raise ValueError(
                f"x: images must be at least {self.min_size} x {self.min_size}, got {H} x {W}"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.features_only:
            state_dict = {
                key: value
                for key, value in state_dict.items()
                if not key.startswith(prefix)
                or key.removeprefix(prefix).split(".")[0] not in self.classifier_names
            }
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
