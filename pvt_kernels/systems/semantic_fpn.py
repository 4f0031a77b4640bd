"""Semantic FPN: a feature pyramid network under a light head (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from pvt_kernels.systems import segmentation
from pvt_kernels.systems.segmentation import SegmentationRecipe, resize_map
from pvt_kernels.systems.training.system import System, create_backbone

_FPN_CHANNELS, _HEAD_CHANNELS, _GROUPS = 256, 128, 32

RECIPES = (
    SegmentationRecipe(
        summary="the paper's: 80K iterations, 4 images a GPU on 4 GPUs",
        micro_batch=4,
        iterations=80_000,
        evaluate_every=8_000,
        **segmentation.PAPER,
    ),
    SegmentationRecipe(**segmentation.SHAPES),
)


class SemanticFpn(nn.Module):
    """A PVT under a feature pyramid network and Panoptic FPN's semantic branch (its figure 3).

    Each level of stride 4, 8, 16, 32 passes through max(1, level) stages of a 3x3 convolution,
    group norm and ReLU, each followed by an upsampling until stride 4 is reached. Their sum gives
    the scores.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = FeaturePyramidNetwork(list(backbone.embed_dims), _FPN_CHANNELS)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                _stage(_HEAD_CHANNELS if i else _FPN_CHANNELS) for i in range(max(1, level))
            )
            for level in range(len(backbone.embed_dims))
        )
        # mmsegmentation's, which the original code trains with
        self.dropout = nn.Dropout2d(0.1)
        self.scores = nn.Conv2d(_HEAD_CHANNELS, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to scores (B, num_classes, H/4, W/4)."""
        maps = self.backbone(images)
        sizes = [m.shape[-2:] for m in maps]
        pyramid = self.neck({str(level): m for level, m in enumerate(maps)}).values()
        total = 0
        for level, (x, branch) in enumerate(zip(pyramid, self.branches, strict=True)):
            for i, stage in enumerate(branch, start=1):
                x = stage(x)
                if level:
                    x = resize_map(x, sizes[level - i])
            total = total + x
        return self.scores(self.dropout(total))


def _stage(in_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, _HEAD_CHANNELS, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, _HEAD_CHANNELS), nn.ReLU())


def build(model: str, classes: Sequence[str], recipe: SegmentationRecipe) -> SemanticFpn:
    """Semantic FPN on a PVT, for `classes`."""
    return SemanticFpn(create_backbone(model, recipe), len(classes))


SYSTEM = System(name="semantic_fpn", recipes=RECIPES, build=build, **segmentation.PARTS)
