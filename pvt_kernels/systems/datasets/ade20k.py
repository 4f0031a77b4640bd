"""ADE20K's layout (ADEChallengeData2016): images and annotations of training and validation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets.folder import is_image_file
from torchvision.transforms.v2 import functional as F

from pvt_kernels.systems.datasets.images import (
    THREADS,
    image_size,
    is_litter,
    read_image,
    require_file,
    require_folder,
)

# the label of pixels that belong to no class, which losses and metrics leave out
IGNORED = 255
CLASSES_FILE = "objectInfo150.txt"
PALETTE_FILE = "palette.txt"
# of masks with one value a pixel
_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")


class Ade20k(Dataset):
    """Images with a class for every pixel.

    A sample is an image (3, H, W) of uint8 and a mask (H, W) of int64: places in `classes`, or
    IGNORED. Annotations are found by their images' names. The values in their PNGs are the numbers
    in objectInfo150.txt, from 1 on; 0 and 255 are of no class. Annotations in colours need
    palette.txt, with red, green and blue of each class from 0 to 255, one line a class in the same
    order; black and white are of no class, unless they are in it.

    Hidden files are left out. All but the pixels is checked here.

    Attributes:
        classes: their names, from objectInfo150.txt.

    Args:
        root: the folder that holds images, annotations, objectInfo150.txt and, for annotations in
            colours, palette.txt.
        train: training or validation.
        transform: maps a sample to another, such as torchvision.transforms.v2 do.
        exif: whether images are turned as their EXIF orientation says; annotations then lie on
            the turned image, else on it as it lies in the file.

    Raises:
        FileNotFoundError: a folder or file is missing, an image's annotation too.
        ValueError: objectInfo150.txt or palette.txt can't be read, which names the line, or an
            annotation has another size than its image.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool,
        transform: Callable[[tv_tensors.Image, tv_tensors.Mask], Any] | None = None,
        exif: bool = True,
    ) -> None:
        root, split = Path(root), "training" if train else "validation"
        self.classes = _read_classes(require_file(root / CLASSES_FILE, "the classes' names"))
        self.palette_file = root / PALETTE_FILE
        self.palette = None
        if self.palette_file.exists():
            self.palette = _read_palette(self.palette_file, len(self.classes))
        folder = require_folder(root / "images" / split, "ADE20K's images")
        annotations = require_folder(root / "annotations" / split, "a PNG for each image")
        self.transform = transform
        self.exif = exif
        self.images = sorted(
            path
            for path in folder.iterdir()
            if is_image_file(path.name) and not is_litter(path.name)
        )
        if not self.images:
            raise FileNotFoundError(f"no image in {folder}")
        self.annotations = [annotations / f"{path.stem}.png" for path in self.images]
        there = set(annotations.iterdir())
        for image, annotation in zip(self.images, self.annotations, strict=True):
            if annotation not in there:
                raise FileNotFoundError(f"missing annotation {annotation} of {image}")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._check_size, self.images, self.annotations))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        path, annotation = self.images[index], self.annotations[index]
        image = tv_tensors.Image(F.pil_to_tensor(read_image(path, turned=self.exif)))
        labels = self._labels(annotation, read_image(annotation, mode="", turned=self.exif))
        mask = tv_tensors.Mask(torch.from_numpy(labels))
        return (image, mask) if self.transform is None else self.transform(image, mask)

    def _labels(self, path: Path, annotation: Image.Image) -> np.ndarray:
        """Places in `classes`, or IGNORED."""
        if annotation.mode in ("LA", "PA"):
            annotation = annotation.getchannel(0)
        if annotation.mode in _MODES:
            values = np.asarray(annotation).astype(np.int64)
            no_class = (values == 0) | (values == IGNORED) & (len(self.classes) < IGNORED)
            known = no_class | (values > 0) & (values <= len(self.classes))
            if not known.all():
                raise ValueError(
                    f"broken annotation {path}: class {values[~known][0]} of {len(self.classes)}; "
                    f"accepted 1 to {len(self.classes)}, and 0 and {IGNORED} for none"
                )
            return np.where(no_class, IGNORED, values - 1)
        if annotation.mode not in ("RGB", "RGBA", "RGBX"):
            raise ValueError(
                f"broken annotation {path}: pixels of mode {annotation.mode}, accepted a class's "
                "number or colour"
            )
        if self.palette is None:
            raise ValueError(
                f"{path} is in colours: put each class's into {self.palette_file}, a line of red, "
                f"green and blue for each line of {CLASSES_FILE}"
            )
        colours, places = np.unique(_packed(np.asarray(annotation)), return_inverse=True)
        unknown = [colour for colour in colours.tolist() if colour not in self.palette]
        if unknown:
            raise ValueError(
                f"broken annotation {path}: colour {unknown[0] >> 16} {unknown[0] >> 8 & 255} "
                f"{unknown[0] & 255} is not in {self.palette_file}"
            )
        labels = np.array([self.palette[colour] for colour in colours.tolist()])
        return labels[places].reshape(annotation.height, annotation.width)

    def _check_size(self, path: Path, annotation: Path) -> None:
        image, mask = image_size(path, self.exif), image_size(annotation, self.exif)
        if image == mask:
            return
        message = f"broken annotation {annotation}: {mask} for an image of {image} pixels"
        if self.exif and image_size(path, turned=False) == mask:
            message += (
                ", which its EXIF orientation turns; accepted annotations of the turned image, or "
                "exif=False"
            )
        raise ValueError(message)


def _packed(colours: np.ndarray) -> np.ndarray:
    """Red, green and blue (..., 3 or more) as one number each."""
    return colours[..., :3].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not in UTF-8: {error}") from error


def _read_classes(path: Path) -> list[str]:
    """The names in the last column, in the order of the first, which counts from 1."""
    classes = []
    for number, line in enumerate(_read_lines(path)[1:], start=2):
        columns = line.split("\t")
        if len(columns) < 2 or columns[0].strip() != str(len(classes) + 1):
            raise ValueError(
                f"{path}, line {number}: given {line!r}, accepted tab-separated columns, the "
                f"first {len(classes) + 1} and the last a name"
            )
        classes.append(columns[-1].strip())
    if not 0 < len(classes) <= IGNORED:
        raise ValueError(
            f"{path}: {len(classes)} classes below the heading, accepted 1 to {IGNORED}"
        )
    return classes


def _read_palette(path: Path, classes: int) -> dict[int, int]:
    """The label of each packed colour, in the classes' order; black and white have none."""
    lines = _read_lines(path)
    colours = []
    for number, line in enumerate(lines, start=1):
        values = line.replace(",", " ").split()
        if len(values) != 3 or not all(v.isdecimal() and int(v) < 256 for v in values):
            raise ValueError(
                f"{path}, line {number}: given {line!r}, accepted red, green and blue from 0 to 255"
            )
        colours.append(tuple(map(int, values)))
    if len(colours) != classes or len(set(colours)) != classes:
        raise ValueError(
            f"{path}: {len(colours)} colours, {len(set(colours))} of them different; accepted a "
            f"colour for each of the {classes} classes"
        )
    packed = _packed(np.array([(0, 0, 0), (255, 255, 255), *colours])).tolist()
    return dict(zip(packed, [IGNORED, IGNORED, *range(classes)], strict=True))
