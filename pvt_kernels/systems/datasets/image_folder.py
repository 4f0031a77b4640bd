"""ImageNet's layout: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import is_image_file

from pvt_kernels.systems.datasets.images import is_litter, read_image, require_folder


class _Images(ImageFolder):
    """torchvision's, without hidden files and folders."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of the folders in order, and their places in it."""
        classes = _classes(Path(directory))
        if not classes:
            raise FileNotFoundError(f"no folder of a class in {directory}")
        return classes, {name: place for place, name in enumerate(classes)}


def image_folder(
    root: str | Path, train: bool, transform: Callable[[Any], Any] | None = None
) -> ImageFolder:
    """Open one of the two folders; samples are (image, class index), classes in sorted order.

    Hidden files and folders are left out.

    Raises:
        FileNotFoundError: a folder is missing, or holds no class or no image of a class.
        ValueError: the classes of the two folders differ.
    """
    root = Path(root)
    folders = {
        name: require_folder(root / name, "a folder of images for each class")
        for name in ("train", "val")
    }
    trained, tested = (set(_classes(folder)) for folder in folders.values())
    if trained != tested:
        raise ValueError(
            f"{root}: train and val must have the same classes; only train has "
            f"{sorted(trained - tested)}, only val {sorted(tested - trained)}"
        )
    folder = str(folders["train" if train else "val"])
    return _Images(
        folder, transform, loader=read_image, is_valid_file=partial(_is_image_of_class, folder)
    )


def _classes(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not is_litter(e.name))


def _is_image_of_class(folder: str, path: str) -> bool:
    # ImageFolder's paths begin with its folder; pathlib would take its time with a million
    parts = path[len(folder) :].split(os.sep)
    return is_image_file(path) and not any(map(is_litter, parts))
