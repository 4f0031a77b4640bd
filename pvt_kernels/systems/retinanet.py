"""RetinaNet: torchvision's on a PVT and an FPN of levels P3 to P7."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from pvt_kernels.systems import detection
from pvt_kernels.systems.coco_figures import CocoFigures
from pvt_kernels.systems.detection import DetectionRecipe, FeaturePyramid, answer_in_float32
from pvt_kernels.systems.training.system import System

RECIPES = (
    DetectionRecipe(
        summary="the paper's and the original code's; 2 images a GPU on 8 GPUs",
        **detection.ONE_SCHEDULE,
    ),
    DetectionRecipe(
        summary="the paper's three times as long, on images of many sizes",
        **detection.THREE_SCHEDULES,
    ),
    DetectionRecipe(epochs=8, evaluate_every=4, **detection.SHAPES),
)


def build(model: str, classes: Sequence[str], recipe: DetectionRecipe) -> nn.Module:
    """RetinaNet with mmdetection's figures, as the original code has it."""
    # torchvision makes P6 from the backbone's last map, as the original code does, unless it has
    # the pyramid's channels
    pyramid = FeaturePyramid(model, recipe, first=1, extra=LastLevelP6P7)
    retinanet = RetinaNet(
        pyramid,
        len(classes),
        min_size=recipe.short_edges,
        max_size=recipe.long_edge,
        detections_per_img=100,
    )
    if recipe.channels < 256:
        # in narrower heads than the paper's the initial 0.01 would leave the signal to die away
        for head in (retinanet.head.classification_head, retinanet.head.regression_head):
            for layer in head.conv:
                nn.init.kaiming_normal_(layer[0].weight, nonlinearity="relu")
    answer_in_float32(retinanet.head)
    return retinanet


SYSTEM = System(
    name="retinanet",
    recipes=RECIPES,
    build=build,
    dataset=detection.dataset,
    evaluator=CocoFigures,
    **detection.PARTS,
)
