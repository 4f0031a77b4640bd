"""Trans2Seg: class queries decoded against a transformer's tokens (Xie et al., IJCAI 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from pvt_kernels.layers import SRAttention
from pvt_kernels.models.blocks import Block, Mlp, init_linear, tokens_to_map
from pvt_kernels.parts import attend, tokens
from pvt_kernels.systems import segmentation
from pvt_kernels.systems.segmentation import SegmentationRecipe, resize_map
from pvt_kernels.systems.training.system import System, create_backbone

# the authors' middle size
_CHANNELS, _LAYERS, _HEADS, _HIDDEN, _MAP_CHANNELS = 256, 4, 8, 768, 64
_SCALE = (_CHANNELS // _HEADS) ** -0.5
# height and width of the position embeddings: the coarsest map of a 512 x 512 image
_GRID = 16

RECIPES = (
    SegmentationRecipe(
        summary="the paper's: 40K iterations; 2 images a GPU on 8 GPUs",
        micro_batch=2,
        iterations=40_000,
        evaluate_every=4_000,
        **segmentation.PAPER,
    ),
    SegmentationRecipe(
        **{
            **segmentation.SHAPES,
            "iterations": 400,
            "evaluate_every": 200,
            "clip_norm": 0.3,
            # classes are told apart on the coarsest map, which has 4 x 4 tokens then
            "crop_size": 128,
            "shorter_edge": 128,
        }
    ),
)


class Trans2Seg(nn.Module):
    """A PVT under Trans2Seg's encoder, decoder and small convolutional head.

    The encoder refines the coarsest map's tokens. The decoder's queries, one for each class, attend
    to them; the scores of its last attention, head by head, are a class's map. Convolutions that
    are the same for each class turn it, with the tokens' map and the backbone's finest, into the
    class's scores.

    The authors' code also refines the attention by MLPs along the tokens, which fix the image's
    size, adds a class token to them that nothing reads, and doubles where it should add inputs;
    these are left out, and so are the weights that its last layer does not use.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.embed = nn.Linear(backbone.embed_dims[-1], _CHANNELS)
        self.pos_embed = nn.Parameter(torch.empty(1, _CHANNELS, _GRID, _GRID))
        self.encoder = nn.ModuleList(
            Block(SRAttention(_CHANNELS, _HEADS), Mlp(_CHANNELS, _HIDDEN, 0.0), 0.0)
            for _ in range(_LAYERS)
        )
        self.norm = nn.LayerNorm(_CHANNELS)
        self.cls_embed = nn.Parameter(torch.empty(1, num_classes, _CHANNELS))
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(_LAYERS - 1))
        self.query, self.key = _normed_linear(), _normed_linear()
        for module in (self.embed, self.encoder, self.decoder, self.query, self.key):
            module.apply(init_linear)
        for parameter in (self.pos_embed, self.cls_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        width = _MAP_CHANNELS
        self.coarse = nn.Sequential(
            *_separable(_CHANNELS + _HEADS, width), *_separable(width, width)
        )
        self.finest = Conv2dNormActivation(backbone.embed_dims[0], width, 1)
        self.fine = nn.Sequential(*_separable(width, width), nn.Conv2d(width, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to scores (B, num_classes, H/4, W/4)."""
        finest, *_, coarsest = self.backbone(images)
        B, _, H, W = coarsest.shape
        x = self.embed(tokens(coarsest)) + tokens(resize_map(self.pos_embed, (H, W)))
        for block in self.encoder:
            x = block(x, H, W)
        x = self.norm(x)
        attention = self._attention(x).unflatten(-1, (H, W))
        classes = attention.shape[1]
        # from here on each class of each image is a map of its own
        maps = tokens_to_map(x, H, W).repeat_interleave(classes, 0)
        maps = self.coarse(torch.cat([maps, attention.flatten(0, 1)], 1))
        maps = resize_map(maps, finest.shape[-2:]).unflatten(0, (B, classes))
        maps = (maps + self.finest(finest)[:, None]).flatten(0, 1)
        return self.fine(maps).view(B, classes, *finest.shape[-2:])

    def _attention(self, x: Tensor) -> Tensor:
        """The last scores (B, num_classes, heads, N) of the classes and the tokens (B, N, C)."""
        queries = self.cls_embed.expand(len(x), -1, -1)
        for layer in self.decoder:
            queries, x = layer(queries, x)
            queries = queries + self.cls_embed
        q, k = (t.unflatten(-1, (_HEADS, -1)) for t in (self.query(queries), self.key(x)))
        return torch.einsum("bchd,bnhd->bchn", q, k) * _SCALE


class DecoderLayer(nn.Module):
    """Class queries attend to the tokens; then queries and tokens pass an MLP each (pre-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.token_norm = nn.LayerNorm(_CHANNELS), nn.LayerNorm(_CHANNELS)
        self.q = nn.Linear(_CHANNELS, _CHANNELS, bias=False)
        self.kv = nn.Linear(_CHANNELS, 2 * _CHANNELS, bias=False)
        self.proj = nn.Linear(_CHANNELS, _CHANNELS)
        self.query_mlp, self.token_mlp = _normed_mlp(), _normed_mlp()

    def forward(self, queries: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Refine the queries (B, classes, C) and the tokens x (B, N, C)."""
        normed = self.query_norm(queries), self.token_norm(x)
        queries = queries + attend(*normed, self.q, (self.kv,), self.proj, _HEADS, _SCALE)
        return queries + self.query_mlp(queries), x + self.token_mlp(x)


def _normed_linear() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(_CHANNELS), nn.Linear(_CHANNELS, _CHANNELS, bias=False))


def _normed_mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(_CHANNELS),
        nn.Linear(_CHANNELS, _HIDDEN),
        nn.GELU(),
        nn.Linear(_HIDDEN, _CHANNELS),
    )


def _separable(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution of each channel, then one across channels, both normalised, with ReLU."""
    return (
        Conv2dNormActivation(in_channels, in_channels, 3, groups=in_channels),
        Conv2dNormActivation(in_channels, out_channels, 1),
    )


def build(model: str, classes: Sequence[str], recipe: SegmentationRecipe) -> Trans2Seg:
    """Trans2Seg on a PVT, for `classes`."""
    return Trans2Seg(create_backbone(model, recipe), len(classes))


SYSTEM = System(name="trans2seg", recipes=RECIPES, build=build, **segmentation.PARTS)
