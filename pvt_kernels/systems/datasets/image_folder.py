"""ImageNet's layout: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from pvt_kernels.systems.datasets.images import read_image, require_folder


def image_folder(
    root: str | Path, train: bool, transform: Callable[[Any], Any] | None = None
) -> ImageFolder:
    """Open one of the two folders; samples are (image, class index), classes in sorted order.

    Raises:
        FileNotFoundError: a folder is missing, or holds no class or no image of a class.
        ValueError: the classes of the two folders differ.
    """
    root = Path(root)
    folders = {
        name: require_folder(root / name, "a folder of images for each class")
        for name in ("train", "val")
    }
    dataset = ImageFolder(str(folders["train" if train else "val"]), transform, loader=read_image)
    trained, tested = (
        {entry.name for entry in folder.iterdir() if entry.is_dir()} for folder in folders.values()
    )
    if trained != tested:
        raise ValueError(
            f"{root}: train and val must have the same classes; only train has "
            f"{sorted(trained - tested)}, only val {sorted(tested - trained)}"
        )
    return dataset
