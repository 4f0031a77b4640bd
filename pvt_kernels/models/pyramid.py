"""What PVT and PVTv2 have in common: the four stages, the classifier and its checkpoints."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from pvt_kernels.backends import transforms
from pvt_kernels.layers import SRAttention
from pvt_kernels.models.blocks import (
    Block,
    ConvMlp,
    Mlp,
    PatchEmbed,
    init_linear,
    tokens_to_map,
)

# of the attributes that hold a stage, the last two where the model has them
_STAGE_PARTS = ("patch_embed", "block", "norm", "pos_embed")


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
    """Base of both models: builds and runs the stages, owns the head, and loads checkpoints.

    Its methods are those that timm's models have, under the same names.

    Attributes:
        features_only: whether forward returns the stages' maps instead of class scores.
        out_indices: the stages whose maps these are; there are none behind the last of them.
        embed_dims: the channels of the four maps.
        strides: their strides on the image: 4, 8, 16 and 32 but in models without a pyramid.
        num_features: the last stage's channels, which the head reads.
        num_classes: the number of class scores; 0 where there is no head.
        in_chans: channels of the images.
        global_pool: one of `pools`: what makes features of the last stage.
        grad_checkpointing: whether blocks keep their inputs alone, and compute again in backward.
        min_size: the smallest image height and width.
    """

    # what global_pool may be, the default first
    pools: tuple[str, ...]

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
        out_indices: int | Sequence[int] | None,
        in_chans: int,
        global_pool: str | None,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        head_drop_rate: float,
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no head) or more, got {num_classes}")
        for name, rate in (
            ("drop_rate", drop_rate),
            ("attn_drop_rate", attn_drop_rate),
            ("drop_path_rate", drop_path_rate),
            ("head_drop_rate", head_drop_rate),
        ):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")
        self.features_only = features_only
        self.embed_dims = config.embed_dims
        self.strides = config.strides
        self.num_stages = 4
        self.num_features = self.head_hidden_size = config.embed_dims[-1]
        self.in_chans = in_chans
        self.global_pool = self.pools[0] if global_pool is None else self._known_pool(global_pool)
        self.grad_checkpointing = False
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
        self.head_drop = nn.Dropout(head_drop_rate)
        if not features_only:
            self.head = self._make_head()
        if out_indices is not None and not features_only:
            raise ValueError("out_indices is of features_only=True")
        self.out_indices = self._taken("out_indices", out_indices)

    def _known_pool(self, global_pool: str) -> str:
        if global_pool not in self.pools:
            raise ValueError(f"global_pool must be one of {self.pools}, got {global_pool!r}")
        return global_pool

    def _make_head(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, self.num_classes)
        init_linear(head)
        return head

    def _taken(self, name: str, indices: int | Sequence[int] | None) -> list[int]:
        """The stages that indices name, as timm counts them."""
        count = self.num_stages
        if indices is None:
            indices = count
        if isinstance(indices, int):
            taken = list(range(count - indices, count))
        else:
            taken = [count + i if i < 0 else i for i in indices]
        if not taken or min(taken) < 0 or max(taken) >= count:
            raise ValueError(
                f"{name} must be some of the stages 0 to {count - 1}, or how many of the last, "
                f"got {indices}"
            )
        return taken

    def _drop_stages(self, count: int) -> None:
        """Keep the first `count` stages."""
        for i in range(count, self.num_stages):
            for part in _STAGE_PARTS:
                if hasattr(self, f"{part}{i + 1}"):
                    delattr(self, f"{part}{i + 1}")
        self.num_stages = count

    def get_classifier(self) -> nn.Module:
        """Return the head: a linear layer, or an Identity where num_classes is 0.

        Raises:
            AttributeError: the model was built with features_only=True.
        """
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one for `num_classes` classes, 0 for none.

        Args:
            global_pool: replaces the model's where it is not None.

        Raises:
            ValueError: the model was built with features_only=True, num_classes is negative, or
                there is no such pooling.
        """
        if self.features_only:
            raise ValueError("reset_classifier: a model with features_only=True has no classifier")
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no head) or more, got {num_classes}")
        if global_pool is not None:
            self.global_pool = self._known_pool(global_pool)
        self.num_classes = num_classes
        self.head = self._make_head().to(self.patch_embed1.proj.weight).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let blocks keep their inputs alone for backward, and compute the rest again: or not."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of parameters' names by depth, for timm's layer-wise learning rates.

        The stem and then the stages; what is in none of them, such as the head, comes last.
        """
        return {
            "stem": r"^(?:patch_embed|pos_embed)1",
            "blocks": rf"^(?:{'|'.join(_STAGE_PARTS)})(\d)",
        }

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the maps of some stages don't need, and return these stages' indices.

        Args:
            indices: see forward_intermediates.
            prune_norm: of no meaning here: norms belong to their stages or to the head.
            prune_head: whether the head goes where all stages stay; it does where one goes.
        """
        taken = self._taken("indices", indices)
        pruned = max(taken) + 1 < self.num_stages
        self._drop_stages(max(taken) + 1)
        if pruned:
            self.num_features = self.head_hidden_size = self.embed_dims[max(taken)]
        if (prune_head or pruned) and not self.features_only:
            self.reset_classifier(0, "")
        return taken

    def _embed(self, i: int, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Images, or the map before, to a stage's tokens, which end with those of a map of H x W,
        H and W.
        """
        return getattr(self, f"patch_embed{i + 1}")(x)

    def _end(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """What follows a stage's blocks."""
        return x

    def _run(
        self, x: torch.Tensor, stages: int, indices: Collection[int]
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Of the first stages the maps of the last one and of `indices`, and the last's tokens."""
        maps = {}
        if not transforms.is_symbol(x) and x.device.type == "cpu":
            # then the first convolution gives tokens, from three channels four times as fast. By
            # permutations, since torch.func.vmap knows no memory format.
            x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        # all in one frame, and under one name: none of the tensors on the way stays alive
        for i in range(stages):
            x, H, W = self._embed(i, x)
            for block in getattr(self, f"block{i + 1}"):
                if self.grad_checkpointing and torch.is_grad_enabled():
                    x = recompute(block, x, H, W, use_reentrant=False)
                else:
                    x = block(x, H, W)
            x = self._end(i, x)
            last = i + 1 == stages
            if last or i in indices:
                maps[i] = tokens_to_map(x[:, -H * W :], H, W)
            if not last:
                x = maps[i] if i in indices else tokens_to_map(x, H, W)
        return maps, x

    def _features(self, maps: dict[int, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """What the head pools, of what `_run` returns."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the maps of stages, and what `forward_features` returns.

        Args:
            x: images (B, in_chans, H, W).
            indices: of the stages, negative ones from the end, in ascending order; a number for as
                many of the last, None for all.
            norm: of no meaning here: PVTv2 norms every stage, PVT none.
            stop_early: leave out the stages behind the last of them.
            output_fmt: "NCHW".
            intermediates_only: return the maps alone.

        Raises:
            ValueError: x is no batch of images or too small, or there is no such stage or format.
        """
        self._check(x)
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken = self._taken("indices", indices)
        stages = max(taken) + 1 if stop_early else self.num_stages
        maps, tokens = self._run(x, stages, taken)
        intermediates = [stage for i, stage in maps.items() if i in taken]
        if intermediates_only:
            return intermediates
        whole = stages == 4 and not self.features_only
        return (self._features(maps, tokens) if whole else maps[stages - 1]), intermediates

    def forward_features(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Compute the last stage's features that `forward_head` takes, or with features_only maps.

        PVTv2's are its map (B, num_features, h, w), PVT's the normed tokens (B, 1 + h*w,
        num_features), of which the first is the class token.
        """
        indices = self.out_indices if self.features_only else ()
        maps, tokens = self._run(x, self.num_stages, indices)
        if self.features_only:
            return [maps[i] for i in indices]
        return self._features(maps, tokens) if self.num_stages == 4 else maps[self.num_stages - 1]

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, num_features) of what `forward_features` returns."""
        raise NotImplementedError

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Class scores (B, num_classes) of what `forward_features` returns.

        Args:
            pre_logits: return the pooled features (B, num_features) instead.
        """
        if self.global_pool:
            x = self._pooled(x)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

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

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Classify images, or extract their feature pyramid.

        Args:
            x: images (B, in_chans, H, W); H and W at least `min_size`, each of any size above.

        Returns:
            Class scores (B, num_classes), the features (B, num_features) where num_classes is 0,
            or with features_only maps (B, embed_dims[i], ...) of the model's strides.

        Raises:
            ValueError: x is no batch of images, or smaller than `min_size`.
        """
        if not transforms.is_symbol(x):
            with transforms.untraced():
                self._check(x)
        features = self.forward_features(x)
        return features if isinstance(features, list) else self.forward_head(features)

    @property
    def unused_names(self) -> set[str]:
        """The top-level names in a classifier's checkpoint that this model has no use for."""
        if not self.features_only:
            return {"head"} if self.num_classes == 0 else set()
        stages = range(self.num_stages, 4)
        return {
            *self.classifier_names,
            *(f"{part}{i + 1}" for part in _STAGE_PARTS for i in stages),
        }

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.features_only:
            state_dict = {
                key: value
                for key, value in state_dict.items()
                if not key.startswith(prefix)
                or key.removeprefix(prefix).split(".")[0] not in self.unused_names
            }
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
