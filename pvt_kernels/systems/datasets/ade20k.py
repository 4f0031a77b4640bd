"""ADE20K's layout (ADEChallengeData2016): images and annotations of training and validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets.folder import is_image_file
from torchvision.transforms.v2 import functional as F

from pvt_kernels.systems.datasets.images import read_image, require_file, require_folder

# the label of pixels that belong to no class, which losses and metrics leave out
IGNORED = 255
CLASSES_FILE = "objectInfo150.txt"


class Ade20k(Dataset):
    """Images with a class for every pixel.

    A sample is an image (3, H, W) of uint8 and a mask (H, W) of int64: places in `classes`, or
    IGNORED where the annotation's PNG has 0. Annotations are found by their images' names.

    Attributes:
        classes: their names, from objectInfo150.txt.

    Args:
        root: the folder that holds images, annotations and objectInfo150.txt.
        train: training or validation.
        transform: maps a sample to another, such as torchvision.transforms.v2 do.

    Raises:
        FileNotFoundError: a folder or file is missing, an image's annotation too.
        ValueError: objectInfo150.txt can't be read; names the line.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool,
        transform: Callable[[tv_tensors.Image, tv_tensors.Mask], Any] | None = None,
    ) -> None:
        root, split = Path(root), "training" if train else "validation"
        self.classes = _read_classes(require_file(root / CLASSES_FILE, "the classes' names"))
        folder = require_folder(root / "images" / split, "ADE20K's images")
        annotations = require_folder(root / "annotations" / split, "a PNG for each image")
        self.transform = transform
        self.images = sorted(path for path in folder.iterdir() if is_image_file(path.name))
        if not self.images:
            raise FileNotFoundError(f"no image in {folder}")
        self.annotations = [annotations / f"{path.stem}.png" for path in self.images]
        there = set(annotations.iterdir())
        for image, annotation in zip(self.images, self.annotations, strict=True):
            if annotation not in there:
                raise FileNotFoundError(f"missing annotation {annotation} of {image}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        path, annotation = self.images[index], self.annotations[index]
        image = tv_tensors.Image(F.pil_to_tensor(read_image(path)))
        values = F.pil_to_tensor(read_image(annotation, mode=""))
        if values.shape[0] != 1 or values.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"broken annotation {annotation}: {tuple(values.shape)} for an image of "
                f"{tuple(image.shape[1:])} pixels"
            )
        values = values[0].long()
        if values.max() > len(self.classes):
            raise ValueError(
                f"broken annotation {annotation}: class {values.max()} of {len(self.classes)}"
            )
        mask = tv_tensors.Mask(torch.where(values == 0, IGNORED, values - 1))
        return (image, mask) if self.transform is None else self.transform(image, mask)


def _read_classes(path: Path) -> list[str]:
    """The names in the last column, in the order of the first, which counts from 1."""
    classes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        columns = line.split("\t")
        if len(columns) < 2 or columns[0].strip() != str(len(classes) + 1):
            raise ValueError(
                f"{path}, line {number}: given {line!r}, accepted tab-separated columns, the "
                f"first {len(classes) + 1} and the last a name"
            )
        classes.append(columns[-1].strip())
    if not classes:
        raise ValueError(f"{path}: no class below the heading")
    return classes
