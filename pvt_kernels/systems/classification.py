"""ImageNet classification, as DeiT trains it and the original PVT code does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.data.auto_augment import RandAugment
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import ImageFolder

from pvt_kernels import models
from pvt_kernels.systems.datasets.image_folder import image_folder
from pvt_kernels.systems.drawing import write_lines
from pvt_kernels.systems.training.fields import Kind, NotNegative, Part, Probability, Side
from pvt_kernels.systems.training.recipe import Recipe
from pvt_kernels.systems.training.schedules import Cosine
from pvt_kernels.systems.training.system import Answer, System, backbone_of

Batch = tuple[Tensor, Tensor]


def _is_policy(text: str) -> bool:
    try:
        create_transform(32, is_training=True, auto_augment=text)
    except Exception:  # timm asserts, or fails at what it doesn't know
        return False
    return True


Policy = Annotated[str, Kind("RandAugment as timm names it, such as rand-m9", _is_policy)]


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe):
    """A recipe with DeiT's augmentation (Touvron et al., ICML 2021, table 9).

    Attributes:
        image_size: the side of the crops.
        crop_ratio: the side of the test crop in the shorter edge of the resized image.
        crop_scale: the least part of an image's area in a random crop.
        flip: probability of a horizontal flip.
        color_jitter: strength of colour jitter where `auto_augment` is None.
        auto_augment: RandAugment as timm names it, or None.
        erasing: probability that a rectangle is replaced by noise.
        mixup, cutmix: the parameter of the mixing weight's beta distribution; 0 for none. Where
            both are on, each takes half of the batches.
        label_smoothing: what the target leaves to all classes.
    """

    image_size: Side = 224
    crop_ratio: Part = 224 / 256
    crop_scale: Part = 0.08
    flip: Probability = 0.5
    color_jitter: NotNegative = 0.4
    auto_augment: Policy | None = "rand-m9-mstd0.5-inc1"
    erasing: Probability = 0.25
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0
    label_smoothing: Probability = 0.1


_DEEP = ("pvt_medium", "pvt_large", "pvt_huge", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5")
_IMAGENET = {
    "batch_size": 1024,
    "micro_batch": 128,
    "epochs": 300,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "schedule": Cosine(warmup_epochs=5, warmup_factor=1e-3, final_factor=1e-2),
    "repeats": 3,
}
RECIPES = (
    ClassificationRecipe(
        name="imagenet",
        summary="the paper's, and the original code's for the smaller models; 128 images a GPU "
        "on 8 GPUs",
        models=tuple(name for name in models.names() if name not in _DEEP),
        **_IMAGENET,
    ),
    ClassificationRecipe(
        name="imagenet_deep",
        summary="the original code's for the larger models: more stochastic depth, clipping",
        model="pvt_large",
        models=_DEEP,
        drop_path_rate=0.3,
        clip_norm=1.0,
        **_IMAGENET,
    ),
    ClassificationRecipe(
        name="shapes",
        summary="the generated data, in minutes on two CPU cores",
        model="pvt_v2_b0",
        batch_size=32,
        micro_batch=32,
        epochs=10,
        learning_rate=1e-3,
        weight_decay=0.05,
        schedule=Cosine(warmup_epochs=1),
        clip_norm=1.0,
        drop_path_rate=0.0,
        evaluate_every=5,
        image_size=64,
        crop_ratio=1.0,
        crop_scale=0.5,
        color_jitter=0.0,
        auto_augment=None,
        erasing=0.0,
        mixup=0.0,
        cutmix=0.0,
    ),
)


def dataset(root: Path, recipe: ClassificationRecipe, train: bool) -> ImageFolder:
    """Open ImageNet's layout: crops (3, image_size, image_size), normalised, and a class."""
    return image_folder(root, train, train_transform(recipe) if train else eval_transform(recipe))


def eval_transform(recipe: ClassificationRecipe):
    """Resize bicubically, crop the centre, and normalise."""
    return create_transform(recipe.image_size, interpolation="bicubic", crop_pct=recipe.crop_ratio)


def train_transform(recipe: ClassificationRecipe):
    """Crop, flip, augment and normalise as DeiT does, and erase a rectangle."""
    transform = create_transform(
        recipe.image_size,
        is_training=True,
        scale=(recipe.crop_scale, 1.0),
        hflip=recipe.flip,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.auto_augment,
        interpolation="bicubic",
        re_prob=recipe.erasing,
        re_mode="pixel",
    )
    # the strongest posterisation keeps no bit, which Pillow refuses from version 13 on
    for step in transform.transforms:
        for op in step.ops if isinstance(step, RandAugment) else ():
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **fill: Any) -> Image.Image:
    """Keep the highest bits of each value; black where that is none."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **fill)


def build(model: str, classes: Sequence[str], recipe: ClassificationRecipe) -> nn.Module:
    """A PVT with a head for `classes`."""
    return models.create(model, num_classes=len(classes), drop_path_rate=recipe.drop_path_rate)


def loss(model: nn.Module, batch: Batch, recipe: ClassificationRecipe) -> dict[str, Tensor]:
    """Cross-entropy of the mixed images with the mixed and smoothed targets.

    Raises:
        ValueError: mixing needs an even number of images.
    """
    images, targets = batch
    if recipe.mixup or recipe.cutmix:
        if len(images) % 2:
            raise ValueError(
                f"mixup and cutmix mix pairs, but a process takes {len(images)} images at once: "
                "give batch_size and micro_batch that leave an even number"
            )
        mix = Mixup(
            recipe.mixup,
            recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=backbone_of(model).num_classes,
        )
        images, targets = mix(images, targets)
        return {"cross_entropy": F.cross_entropy(model(images).float(), targets)}
    scores = model(images).float()
    return {
        "cross_entropy": F.cross_entropy(scores, targets, label_smoothing=recipe.label_smoothing)
    }


class Accuracy:
    """Top-1 and top-5 accuracy by torchmetrics, which adds up the processes' counts."""

    def __init__(self, dataset: ImageFolder, device: torch.device, _: Recipe) -> None:
        classes = len(dataset.classes)
        self.metrics = MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(classes, top_k=min(k, classes), average="micro")
                for k in (1, 5)
            },
            compute_groups=False,
        ).to(device)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """See Evaluator."""
        images, targets = batch
        self.metrics.update(model(images).float(), targets)

    def compute(self) -> dict[str, float]:
        """See Evaluator: parts of 1."""
        return {name: value.item() for name, value in self.metrics.compute().items()}


@torch.no_grad()
def answer(
    model: nn.Module, image: Image.Image, classes: Sequence[str], recipe: ClassificationRecipe
) -> Answer:
    """The five likeliest classes and their probabilities, below the image."""
    device = next(model.parameters()).device
    scores = model(eval_transform(recipe)(image)[None].to(device))[0].float()
    best = scores.softmax(0).topk(min(5, len(classes)))
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    lines = [f"{value:6.1%}  {classes[label]}" for value, label in rows]
    return Answer(lines, write_lines(image, lines))


SYSTEM = System(
    name="classification",
    recipes=RECIPES,
    dataset=dataset,
    collate=default_collate,
    build=build,
    loss=loss,
    evaluator=Accuracy,
    answer=answer,
)
