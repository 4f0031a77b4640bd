"""COCO's layout: ROOT/train2017/*.jpg, ROOT/val2017/*.jpg, ROOT/annotations/instances_*.json."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pvt_kernels.systems.datasets.images import read_image, require_file, require_folder

Sample = tuple[tv_tensors.Image, dict[str, Any]]


class CocoInstances(Dataset):
    """Images with the boxes, classes and masks of their objects.

    A sample is an image (3, H, W) of uint8 and a target: `image_id`; `boxes` (objects, 4), x1 y1
    x2 y2 in pixels; `labels` (objects,), places in `classes`; with `masks` also `masks`
    (objects, H, W) of 0 and 1. Crowds and boxes without an area are left out of targets, and for
    training images without any object, as in mmdetection and torchvision's recipes; `coco` has
    everything for the evaluation. An annotation without `iscrowd` is no crowd, and one without
    `area`, by which COCO tells small objects from large, has its mask's, or where there is no mask
    its box's, as pycocotools does for detections.

    Attributes:
        classes: the categories' names, ordered by their ids.
        category_ids: COCO's id of each class.
        image_ids: in ascending order.
        coco: pycocotools' index of the annotations.

    Args:
        root: the folder that holds train2017, val2017 and annotations.
        train: which of the two.
        masks: whether targets have masks.
        transform: maps a sample to another, such as torchvision.transforms.v2 do.

    Raises:
        FileNotFoundError: a folder or the annotations are missing.
        ValueError: the annotations can't be used; names the file and what is wrong.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool,
        masks: bool = False,
        transform: Callable[[tv_tensors.Image, dict[str, Any]], Any] | None = None,
    ) -> None:
        split = "train2017" if train else "val2017"
        self.folder = require_folder(Path(root) / split, "COCO's images")
        self.path = require_file(
            Path(root) / "annotations" / f"instances_{split}.json", "COCO's annotations"
        )
        self.coco = _index(self.path)
        self.masks = masks
        self.transform = transform
        self.category_ids = sorted(self.coco.getCatIds())
        self.classes = [self.coco.cats[category]["name"] for category in self.category_ids]
        self.labels = {category: label for label, category in enumerate(self.category_ids)}
        self.image_ids = sorted(self.coco.getImgIds())
        if train:
            self.image_ids = [i for i in self.image_ids if self._objects(i)]
        if not self.image_ids:
            raise ValueError(f"{self.path}: no image{' with an object' if train else ''}")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        image_id = self.image_ids[index]
        entry = self.coco.imgs[image_id]
        path = self.folder / entry["file_name"]
        image = tv_tensors.Image(F.pil_to_tensor(read_image(path)))
        size = (entry["height"], entry["width"])
        if tuple(image.shape[-2:]) != size:
            raise ValueError(
                f"{path} is {image.shape[-2]} x {image.shape[-1]} pixels, "
                f"but {size[0]} x {size[1]} in {self.path}"
            )
        objects = self._objects(image_id)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (o["bbox"] for o in objects)]
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=size,
        )
        target = {
            "image_id": image_id,
            "boxes": F.clamp_bounding_boxes(boxes),
            "labels": torch.tensor([self.labels[o["category_id"]] for o in objects]).long(),
        }
        if self.masks:
            masks = [torch.from_numpy(self._mask(o)) for o in objects]
            stacked = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8)
            target["masks"] = tv_tensors.Mask(stacked)
        return (image, target) if self.transform is None else self.transform(image, target)

    def _objects(self, image_id: int) -> list[dict[str, Any]]:
        annotations = self.coco.imgToAnns.get(image_id, [])
        return [a for a in annotations if not a["iscrowd"] and min(a["bbox"][2:]) > 0]

    def _mask(self, annotation: dict[str, Any]) -> np.ndarray:
        with _naming(self.path, annotation):
            return rle.decode(self.coco.annToRLE(annotation))


def _index(path: Path) -> COCO:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"broken annotations {path}: {error}") from error
    for key, needed in (
        ("images", ("id", "file_name", "height", "width")),
        ("categories", ("id", "name")),
        ("annotations", ("id", "image_id", "category_id", "bbox")),
    ):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"broken annotations {path}: no list of {key!r}")
        for i, entry in enumerate(entries):
            missing = [name for name in needed if name not in entry]
            if missing:
                raise ValueError(f"broken annotations {path}: {key}[{i}] lacks {missing}")
    images = {entry["id"] for entry in content["images"]}
    categories = {entry["id"] for entry in content["categories"]}
    for i, entry in enumerate(content["annotations"]):
        if entry["image_id"] not in images or entry["category_id"] not in categories:
            raise ValueError(
                f"broken annotations {path}: annotations[{i}] is of image {entry['image_id']} and "
                f"category {entry['category_id']}, which are not both there"
            )
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            annotation["area"] = _area(path, coco, annotation)
    return coco


def _area(path: Path, coco: COCO, annotation: dict[str, Any]) -> float:
    """In pixels, as pycocotools' loadRes finds it."""
    if annotation.get("segmentation"):
        with _naming(path, annotation):
            return float(rle.area(coco.annToRLE(annotation)))
    _, _, width, height = annotation["bbox"]
    return width * height


@contextlib.contextmanager
def _naming(path: Path, annotation: dict[str, Any]) -> Iterator[None]:
    """Says of which annotation a segmentation is broken."""
    try:
        yield
    except Exception as error:  # pycocotools raises whatever comes up
        raise ValueError(
            f"{path}: broken segmentation of annotation {annotation['id']}: {error!r}"
        ) from error
