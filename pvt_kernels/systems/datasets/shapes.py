"""Generated data: coloured shapes, in the three layouts, the same for the same seed."""

from __future__ import annotations

import colorsys
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pvt_kernels.systems.datasets.ade20k import CLASSES_FILE

CLASSES = ("circle", "triangle", "square", "pentagon", "star", "cross")
# of the pixels around the shapes, in dense labels alone
BACKGROUND = "background"
IMAGE_FOLDER, COCO, ADE20K = "image_folder", "coco", "ade20k"

CLASS_IMAGE_SIZE = (64, 64)
SCENE_SIZES = ((128, 128), (128, 160), (160, 128))
_JPEG_QUALITY = 95
_TRIES = 20


@dataclass(frozen=True)
class Shape:
    """One object: its place in CLASSES and its outline, (corners, 2) of x and y in pixels."""

    label: int
    outline: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2."""
        return (*self.outline.min(0).tolist(), *self.outline.max(0).tolist())


def make_data(root: str | Path, images: int = 240, seed: int = 0) -> dict[str, Path]:
    """Write the three layouts below `root`, each with `images` to train and a quarter to test.

    Classification has one shape an image; the other two share scenes of one to four shapes that
    don't overlap, on grey noise. A class has a hue of its own, give or take. In dense labels the
    noise is a class as well, and the shapes' edges belong to none.

    Returns:
        The folder of each layout.

    Raises:
        ValueError: images is too small for one of each class, or `root` is no empty folder.
    """
    root = Path(root)
    if images < 4 * len(CLASSES):
        raise ValueError(f"images: given {images}, accepted {4 * len(CLASSES)} or more")
    if root.exists() and not (root.is_dir() and next(root.iterdir(), None) is None):
        raise ValueError(f"path: given {root}, which is not empty; accepted a new folder")
    folders = {name: root / name for name in (IMAGE_FOLDER, COCO, ADE20K)}
    for split, (train, count) in enumerate(((True, images), (False, images // 4))):
        _write_image_folder(folders[IMAGE_FOLDER], train, count, [seed, split, 0])
        _write_scenes(folders[COCO], folders[ADE20K], train, count, [seed, split, 1])
    rows = [f"{i}\t\t\t\t\t{name}" for i, name in enumerate((*CLASSES, BACKGROUND), start=1)]
    heading = "Idx\tRatio\tTrain\tVal\tStuff\tName"
    (folders[ADE20K] / CLASSES_FILE).write_text(
        "\n".join([heading, *rows]) + "\n", encoding="utf-8"
    )
    return folders


def scene(
    rng: np.random.Generator, size: tuple[int, int], labels: list[int], radii: tuple[float, float]
) -> tuple[Image.Image, list[Shape]]:
    """Draw shapes of these classes where there is room; a shape that finds none is left out.

    Args:
        size: height and width in pixels.
        radii: the least and the largest distance of a shape's corners from its centre.
    """
    height, width = size
    grey = rng.uniform(60, 200) + rng.normal(0, 12, (height, width, 1))
    background = grey + rng.normal(0, 6, (height, width, 3))
    image = Image.fromarray(background.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    shapes: list[Shape] = []
    for label in labels:
        for _ in range(_TRIES):
            radius = rng.uniform(*radii)
            centre = rng.uniform(radius + 1, (width - radius - 1, height - radius - 1))
            shape = Shape(label, centre + radius * _outline(CLASSES[label], rng))
            if not any(_overlap(shape.box, other.box) for other in shapes):
                shapes.append(shape)
                draw.polygon([tuple(p) for p in shape.outline.tolist()], fill=_colour(label, rng))
                break
    return image, shapes


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """Corners of a shape of radius 1 around the origin, turned a little."""
    corners = {"circle": 32, "triangle": 3, "square": 4, "pentagon": 5, "star": 10, "cross": 12}
    count = corners[name]
    angle = 2 * np.pi * np.arange(count) / count + rng.uniform(-0.2, 0.2) - np.pi / 2
    distance = np.ones(count)
    if name == "square":
        angle += np.pi / 4
    if name == "star":
        distance[1::2] = 0.4
    if name == "cross":
        # arms of width 2/3: their tips at (+-1/3, +-1), the corners between them at 1/3
        turn = angle[0] + np.pi / 2
        tip, inner = math.hypot(1, 1 / 3), math.hypot(1 / 3, 1 / 3)
        bend = math.atan(1 / 3)
        quarter = np.array([-bend, bend, np.pi / 4])
        angle = (np.arange(4)[:, None] * np.pi / 2 + quarter).ravel() + turn
        distance = np.tile([1, 1, inner / tip], 4)
    return distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _colour(label: int, rng: np.random.Generator) -> tuple[int, int, int]:
    hue = (label + rng.uniform(-0.3, 0.3)) / len(CLASSES)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.0))
    return tuple(round(255 * value) for value in rgb)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write_image_folder(root: Path, train: bool, count: int, seed: list[int]) -> None:
    for i in range(count):
        rng = np.random.default_rng([*seed, i])
        label = i % len(CLASSES)
        image, _ = scene(rng, CLASS_IMAGE_SIZE, [label], (14, 26))
        _save(image, root / ("train" if train else "val") / CLASSES[label] / f"{i:05}.jpg")


def _write_scenes(coco: Path, ade20k: Path, train: bool, count: int, seed: list[int]) -> None:
    split = ("train2017", "training") if train else ("val2017", "validation")
    images, annotations = [], []
    for i in range(count):
        rng = np.random.default_rng([*seed, i])
        height, width = SCENE_SIZES[rng.integers(len(SCENE_SIZES))]
        labels = rng.integers(len(CLASSES), size=rng.integers(1, 5)).tolist()
        image, shapes = scene(rng, (height, width), labels, (16, 32))
        file_name = f"{i + 1:012}.jpg"
        _save(image, coco / split[0] / file_name)
        images.append({"id": i + 1, "file_name": file_name, "height": height, "width": width})
        annotations += [
            _annotation(shape, i + 1, len(annotations) + k)
            for k, shape in enumerate(shapes, start=1)
        ]
        name = f"ADE_{'train' if train else 'val'}_{i + 1:08}"
        _save(image, ade20k / "images" / split[1] / f"{name}.jpg")
        mask = Image.new("L", (width, height), len(CLASSES) + 1)
        for shape in shapes:
            corners = [tuple(p) for p in shape.outline.tolist()]
            ImageDraw.Draw(mask).polygon(corners, fill=shape.label + 1, outline=0)
        _save(mask, ade20k / "annotations" / split[1] / f"{name}.png")
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    path = coco / "annotations" / f"instances_{split[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _annotation(shape: Shape, image_id: int, annotation_id: int) -> dict:
    x1, y1, x2, y2 = shape.box
    x, y = shape.outline.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape.label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(area),
        "iscrowd": 0,
        "segmentation": [shape.outline.ravel().tolist()],
    }


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=_JPEG_QUALITY)
