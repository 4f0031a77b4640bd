"""What the detectors share: recipe, data, the pyramid of features, losses and pictures.

A detector has the interface of torchvision's: it takes a list of images (3, H, W) of 0 to 1 in
their own sizes, in training with a target for each, and returns a dict of losses, or in evaluation
a dict for each image of `boxes` (objects, 4), x1 y1 x2 y2 in its pixels, `labels`, `scores` and for
some `masks` (objects, H, W) of probabilities. Labels are places in the classes, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pvt_kernels.systems.datasets.coco import CocoInstances
from pvt_kernels.systems.drawing import draw_objects
from pvt_kernels.systems.training.fields import Count, Lengths, Probability, Switch
from pvt_kernels.systems.training.recipe import Recipe
from pvt_kernels.systems.training.schedules import Cosine, MultiStep
from pvt_kernels.systems.training.system import Answer, create_backbone

Batch = tuple[list[Tensor], list[dict[str, Any]]]

# of what is drawn
_LEAST_SCORE = 0.3


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """A recipe with the resizing and flipping of detectors.

    Attributes:
        short_edges: lengths of an image's shorter edge in pixels, of which training draws one for
            each image; evaluation takes the last.
        long_edge: where the longer edge would be longer, it is this long instead.
        flip: probability of a horizontal flip.
        exif: whether images are turned as their EXIF orientation says.
        channels: of the feature maps that the heads read.
    """

    short_edges: Lengths = (800,)
    long_edge: Count = 1333
    flip: Probability = 0.5
    exif: Switch = True
    channels: Count = 256


# of all detectors in the paper; weight decay is the original code's
PAPER = {"batch_size": 16, "micro_batch": 2, "learning_rate": 1e-4, "weight_decay": 1e-4}
ONE_SCHEDULE = {**PAPER, "name": "1x", "epochs": 12, "schedule": MultiStep((8, 11))}
THREE_SCHEDULES = {
    **PAPER,
    "name": "3x",
    "epochs": 36,
    "schedule": MultiStep((27, 33)),
    "short_edges": tuple(range(640, 801)),
}
SHAPES = {
    "name": "shapes",
    "summary": "the generated data, in minutes on two CPU cores",
    "model": "pvt_v2_b0",
    "batch_size": 8,
    "micro_batch": 8,
    "weight_decay": 1e-4,
    "learning_rate": 1e-3,
    "schedule": Cosine(warmup_epochs=1),
    "clip_norm": 1.0,
    "drop_path_rate": 0.0,
    "short_edges": (96,),
    "long_edge": 192,
    "channels": 64,
}


def dataset(root: Path, recipe: DetectionRecipe, train: bool, masks: bool = False) -> CocoInstances:
    """Open COCO's layout; images keep their sizes, and targets to evaluate have no masks."""
    steps = [v2.RandomHorizontalFlip(recipe.flip), v2.SanitizeBoundingBoxes()] if train else []
    return CocoInstances(
        root,
        train,
        masks and train,
        v2.Compose([*steps, v2.ToPureTensor()]),
        segmentations=masks,
        exif=recipe.exif,
    )


def collate(samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Images of any sizes, and their targets."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class FeaturePyramid(nn.Module):
    """The maps of a PVT's stages, merged from the smallest to the largest (FPN).

    Forward maps images (B, 3, H, W) to maps (B, out_channels, ...) by name: "0" and so on for the
    stages, then the extra block's.

    Args:
        name: of the backbone.
        recipe: gives its stochastic depth and the maps' channels.
        first: the stage that the pyramid begins with, counted from 0.
        extra: (the last stage's channels, the maps') -> block that makes smaller maps.
    """

    def __init__(
        self,
        name: str,
        recipe: DetectionRecipe,
        first: int,
        extra: Callable[[int, int], ExtraFPNBlock],
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(name, recipe)
        dims = list(self.backbone.embed_dims[first:])
        block = extra(dims[-1], recipe.channels)
        self.fpn = FeaturePyramidNetwork(dims, recipe.channels, block)
        self.first = first
        self.out_channels = recipe.channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        maps = self.backbone(images)[self.first :]
        merged = self.fpn({str(i): stage for i, stage in enumerate(maps)})
        # torchvision's anchors have the maps' dtype, and bfloat16 has no place 1333
        return {name: stage.float() for name, stage in merged.items()}


def answer_in_float32(*heads: nn.Module) -> None:
    """Make heads return float32 under autocast too: losses and boxes are computed from it."""
    for head in heads:
        head.register_forward_hook(_to_float32)


def _to_float32(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    return tree_map(Tensor.float, output)


def loss(model: nn.Module, batch: Batch, recipe: DetectionRecipe) -> dict[str, Tensor]:
    """The detector's own losses."""
    images, targets = batch
    return model(_scaled(images), targets)


def detect(model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """The objects that a detector in evaluation mode finds in images of uint8."""
    return model(_scaled(images))


def _scaled(images: Sequence[Tensor]) -> list[Tensor]:
    return [F.to_dtype(image, torch.float32, scale=True) for image in images]


@torch.no_grad()
def answer(
    model: nn.Module, image: Image.Image, classes: Sequence[str], recipe: DetectionRecipe
) -> Answer:
    """The classes, scores and boxes of the objects, drawn on the image with their masks."""
    device = next(model.parameters()).device
    objects = detect(model, [F.pil_to_tensor(image).to(device)])[0]
    sure = objects["scores"] > _LEAST_SCORE
    found = {name: value[sure].cpu() for name, value in objects.items()}
    masks = found["masks"].numpy() > 0.5 if "masks" in found else None
    labels, scores, boxes = (found[name].tolist() for name in ("labels", "scores", "boxes"))
    lines = [
        f"{score:6.1%}  {classes[label]}  at " + " ".join(f"{value:.0f}" for value in box)
        for label, score, box in zip(labels, scores, boxes, strict=True)
    ]
    return Answer(
        lines or [f"no object with a score above {_LEAST_SCORE:.0%}"],
        draw_objects(image, boxes, labels, scores, classes, masks),
    )


# what is the same in every such System
PARTS = {"collate": collate, "loss": loss, "answer": answer}
