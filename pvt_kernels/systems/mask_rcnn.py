"""Mask R-CNN: torchvision's on a PVT and an FPN of levels P2 to P6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import mask_rcnn as torchvision_mask_rcnn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pvt_kernels.systems import detection
from pvt_kernels.systems.coco_figures import CocoFigures
from pvt_kernels.systems.detection import DetectionRecipe, FeaturePyramid, answer_in_float32
from pvt_kernels.systems.training.fields import Count
from pvt_kernels.systems.training.system import System


@dataclass(frozen=True, kw_only=True)
class MaskRCNNRecipe(DetectionRecipe):
    """A detection recipe with the regions, of each image, on which the heads are trained."""

    regions: Count = 512


RECIPES = (
    MaskRCNNRecipe(
        summary="the paper's; 2 images a GPU on 8 GPUs, whereas the original code's learning rate "
        "is 2e-4",
        **detection.ONE_SCHEDULE,
    ),
    MaskRCNNRecipe(
        summary="the paper's three times as long, on images of many sizes",
        **detection.THREE_SCHEDULES,
    ),
    MaskRCNNRecipe(epochs=5, evaluate_every=5, regions=64, **detection.SHAPES),
)


class MaskRCNN(torchvision_mask_rcnn.MaskRCNN):
    """torchvision's, with labels from 0: the background, which it has there, stays inside."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        """See pvt_kernels.systems.detection."""
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        answers = super().forward(images, targets)
        if self.training:
            return answers
        return [
            {**answer, "labels": answer["labels"] - 1, "masks": answer["masks"][:, 0]}
            for answer in answers
        ]


def build(model: str, classes: Sequence[str], recipe: MaskRCNNRecipe) -> nn.Module:
    """Mask R-CNN with mmdetection's figures, as the original code has it."""
    pyramid = FeaturePyramid(model, recipe, first=0, extra=lambda *_: LastLevelMaxPool())
    channels = recipe.channels
    mask_rcnn = MaskRCNN(
        pyramid,
        1 + len(classes),
        min_size=recipe.short_edges,
        max_size=recipe.long_edge,
        rpn_post_nms_top_n_train=1000,
        box_batch_size_per_image=recipe.regions,
        mask_head=MaskRCNNHeads(channels, [channels] * 4, 1),
    )
    # the constructor makes it for 256 channels
    mask_rcnn.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, 1 + len(classes))
    heads = mask_rcnn.roi_heads
    answer_in_float32(mask_rcnn.rpn.head, heads.box_predictor, heads.mask_predictor)
    return mask_rcnn


SYSTEM = System(
    name="mask_rcnn",
    recipes=RECIPES,
    build=build,
    dataset=partial(detection.dataset, masks=True),
    evaluator=partial(CocoFigures, masks=True),
    **detection.PARTS,
)
