"""What the systems for semantic segmentation share: data, loss, figures and pictures.

Their models map images (B, 3, H, W) to scores (B, classes, h, w) on a coarser grid, which are
interpolated bilinearly to wherever they are compared with labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from pvt_kernels.systems.datasets.ade20k import IGNORED, Ade20k
from pvt_kernels.systems.drawing import class_colour, write_lines
from pvt_kernels.systems.training.fields import Count, Part, Probability, Range, Side, Switch
from pvt_kernels.systems.training.recipe import Recipe
from pvt_kernels.systems.training.schedules import Poly
from pvt_kernels.systems.training.system import Answer

Sample = tuple[Tensor, Tensor]
# images (3, H, W) and masks (H, W): of one size in training, of any in evaluation
Batch = tuple[list[Tensor], list[Tensor]]

# of the backbone's coarsest map
_STRIDE = 32
# crops that are tried before one with too much of a class is taken
_CROP_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(Recipe):
    """A recipe with mmsegmentation's preparation of ADE20K.

    Attributes:
        crop_size: the side of the crops to train on.
        shorter_edge, longest_edge: what images are resized to, as far as both allow.
        scales: the range of the random factor of both edges in training.
        class_share: the part of a crop's labelled pixels that one class may have, as far as a few
            tries find such a crop.
        flip: probability of a horizontal flip.
        exif: whether images are turned as their EXIF orientation says.
        distort: whether brightness, contrast, saturation and hue change.
    """

    crop_size: Side = 512
    shorter_edge: Count = 512
    longest_edge: Count = 2048
    scales: Range = (0.5, 2.0)
    class_share: Part = 0.75
    flip: Probability = 0.5
    exif: Switch = True
    distort: Switch = True


# of both systems in the paper; weight decay is the original code's
PAPER = {
    "name": "ade20k",
    "batch_size": 16,
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "schedule": Poly(0.9),
}
SHAPES = {
    "name": "shapes",
    "summary": "the generated data, in minutes on two CPU cores",
    "model": "pvt_v2_b0",
    "batch_size": 8,
    "micro_batch": 8,
    "iterations": 100,
    "evaluate_every": 50,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "schedule": Poly(0.9),
    "clip_norm": 1.0,
    "drop_path_rate": 0.0,
    "crop_size": 96,
    "shorter_edge": 96,
    "scales": (0.8, 1.25),
    "class_share": 1.0,
    "distort": False,
}


def dataset(root: Path, recipe: SegmentationRecipe, train: bool) -> Ade20k:
    """Open ADE20K's layout: an image (3, H, W), normalised, and a mask of int64.

    To train, both are crops of crop_size x crop_size. To test, the image is resized, and the mask
    is as large as it was annotated.
    """
    transform = partial(train_sample if train else eval_sample, recipe)
    return Ade20k(root, train, transform, exif=recipe.exif)


def train_sample(recipe: SegmentationRecipe, image: Tensor, mask: Tensor) -> Sample:
    """Resize at random, crop, flip, distort colours, normalise, and pad what is too small."""
    factor = torch.empty(()).uniform_(*recipe.scales).item()
    size = _fitted(recipe, image, factor)
    image, mask = T.resize(image, size, antialias=True), T.resize(mask, size)
    top, left = _crop_place(recipe, mask)
    image, mask = (T.crop(t, top, left, *_crop_size(recipe, mask)) for t in (image, mask))
    if torch.rand(()) < recipe.flip:
        image, mask = T.horizontal_flip(image), T.horizontal_flip(mask)
    if recipe.distort:
        image = v2.RandomPhotometricDistort()(image)
    padding = [0, 0, *(recipe.crop_size - edge for edge in reversed(mask.shape))]
    image = T.pad(_normalised(image), padding)
    return image.as_subclass(Tensor), T.pad(mask, padding, fill=IGNORED).as_subclass(Tensor)


def eval_sample(recipe: SegmentationRecipe, image: Tensor, mask: Tensor) -> Sample:
    """Resize the image and normalise it."""
    return eval_image(recipe, image), mask.as_subclass(Tensor)


def eval_image(recipe: SegmentationRecipe, image: Tensor) -> Tensor:
    """Resize (3, H, W) of uint8 to multiples of the backbone's stride, and normalise."""
    size = [-(-edge // _STRIDE) * _STRIDE for edge in _fitted(recipe, image, 1.0)]
    return _normalised(T.resize(image, size, antialias=True)).as_subclass(Tensor)


def _fitted(recipe: SegmentationRecipe, image: Tensor, factor: float) -> list[int]:
    """Height and width that keep the aspect ratio within the recipe's edges times a factor."""
    height, width = image.shape[-2:]
    scale = factor * min(
        recipe.shorter_edge / min(height, width), recipe.longest_edge / max(height, width)
    )
    return [max(1, round(scale * height)), max(1, round(scale * width))]


def _crop_size(recipe: SegmentationRecipe, mask: Tensor) -> tuple[int, int]:
    height, width = mask.shape
    return min(recipe.crop_size, height), min(recipe.crop_size, width)


def _crop_place(recipe: SegmentationRecipe, mask: Tensor) -> tuple[int, int]:
    """Top and left of a crop in which no class has more than its share, if one is found."""
    size = _crop_size(recipe, mask)
    for _ in range(_CROP_TRIES):
        top, left = (
            int(torch.randint(whole - part + 1, ()))
            for whole, part in zip(mask.shape, size, strict=True)
        )
        crop = mask[top : top + size[0], left : left + size[1]]
        counts = torch.bincount(crop[crop != IGNORED])
        if recipe.class_share >= 1 or 0 < counts.sum() * recipe.class_share >= counts.max():
            break
    return top, left


def _normalised(image: Tensor) -> Tensor:
    image = T.to_dtype(image, torch.float32, scale=True)
    return T.normalize(image, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))


def collate(samples: list[Sample]) -> Batch:
    """Images and masks in lists, since images to test have sizes of their own."""
    images, masks = zip(*samples, strict=True)
    return list(images), list(masks)


def resize_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B, C, h, w) interpolated bilinearly to (B, C, *size)."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def loss(model: nn.Module, batch: Batch, recipe: SegmentationRecipe) -> dict[str, Tensor]:
    """Mean cross-entropy of the labelled pixels; 0 where there is none."""
    images, masks = map(torch.stack, batch)
    scores = resize_map(model(images).float(), masks.shape[-2:])
    total = F.cross_entropy(scores, masks, ignore_index=IGNORED, reduction="sum")
    return {"cross_entropy": total / (masks != IGNORED).sum().clamp(min=1)}


class MeanIou:
    """Mean intersection over union of the classes, and the part of pixels that are right.

    By torchmetrics, which adds up the processes' confusion matrices. A class that neither the
    labels nor the answers have is left out of the mean.
    """

    def __init__(self, dataset: Ade20k, device: torch.device, _: Recipe) -> None:
        shared = {
            "num_classes": len(dataset.classes),
            "ignore_index": IGNORED,
            "validate_args": False,
        }
        self.metrics = MetricCollection(
            {
                "miou": MulticlassJaccardIndex(**shared),
                "pixel_accuracy": MulticlassAccuracy(average="micro", **shared),
            },
            compute_groups=False,
        ).to(device)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """See Evaluator: each image at its own size, compared at its mask's."""
        for image, mask in zip(*batch, strict=True):
            self.metrics.update(labels_of(model, image, mask.shape)[None], mask[None])

    def compute(self) -> dict[str, float]:
        """See Evaluator: parts of 1."""
        return {name: value.item() for name, value in self.metrics.compute().items()}


def labels_of(model: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
    """The likeliest class of each pixel of one image (3, H, W), at another size."""
    return resize_map(model(image[None]).float(), size)[0].argmax(0)


@torch.no_grad()
def answer(
    model: nn.Module, image: Image.Image, classes: Sequence[str], recipe: SegmentationRecipe
) -> Answer:
    """How much of the image each class has, below the image in the colours of the classes."""
    device = next(model.parameters()).device
    pixels = eval_image(recipe, T.pil_to_tensor(image)).to(device)
    labels = labels_of(model, pixels, (image.height, image.width)).cpu()
    colours = torch.tensor([class_colour(label) for label in range(len(classes))])
    layer = Image.fromarray(colours[labels].to(torch.uint8).numpy())
    counts = torch.bincount(labels.flatten(), minlength=len(classes))
    found = [label for label in counts.argsort(descending=True).tolist() if counts[label]]
    lines = [f"{counts[label] / labels.numel():6.1%}  {classes[label]}" for label in found]
    coloured = Image.blend(image, layer, 0.5)
    return Answer(lines, write_lines(coloured, lines, [class_colour(i) for i in found]))


# what is the same in every such System
PARTS = {
    "dataset": dataset,
    "collate": collate,
    "loss": loss,
    "evaluator": MeanIou,
    "answer": answer,
}
