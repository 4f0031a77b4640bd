"""COCO's layout: ROOT/train2017/*.jpg, ROOT/val2017/*.jpg, ROOT/annotations/instances_*.json."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pvt_kernels.systems.datasets.coco_format import check_annotations, read_annotations
from pvt_kernels.systems.datasets.images import (
    THREADS,
    image_size,
    read_image,
    require_file,
    require_folder,
)

Sample = tuple[tv_tensors.Image, dict[str, Any]]


class CocoInstances(Dataset):
    """Images with the boxes, classes and masks of their objects.

    A sample is an image (3, H, W) of uint8 and a target: `image_id`; `boxes` (objects, 4), x1 y1
    x2 y2 in pixels; `labels` (objects,), places in `classes`; with `masks` also `masks`
    (objects, H, W) of 0 and 1. Crowds and boxes without an area are left out of targets, and for
    training images without any object, as in mmdetection and torchvision's recipes; `coco` has
    everything for the evaluation. An annotation without `iscrowd` is no crowd, and one without
    `area`, by which COCO tells small objects from large, has its segmentation's, or where there is
    none its box's, as pycocotools does for detections. Annotations are numbered anew, from 1:
    pycocotools takes their ids for unique, and 0 for none.

    All that training and evaluation would fail at or misread is found here, but for images whose
    first bytes are right: those are named when they are read.

    Attributes:
        classes: the categories' names, ordered by their ids.
        category_ids: COCO's id of each class.
        image_ids: in ascending order.
        coco: pycocotools' index of the annotations.

    Args:
        root: the folder that holds train2017, val2017 and annotations.
        train: which of the two.
        masks: whether targets have masks.
        segmentations: whether every annotation must have one, for figures of masks.
        exif: whether images are turned as their EXIF orientation says; annotations then lie on
            the turned image, else on it as it lies in the file.
        transform: maps a sample to another, such as torchvision.transforms.v2 do.

    Raises:
        FileNotFoundError: a folder, the annotations or an image are missing.
        ValueError: an annotation can't be used, or an image has another size than it says; names
            the file, the entry and what is wrong.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool,
        masks: bool = False,
        transform: Callable[[tv_tensors.Image, dict[str, Any]], Any] | None = None,
        segmentations: bool = False,
        exif: bool = True,
    ) -> None:
        split = "train2017" if train else "val2017"
        self.folder = require_folder(Path(root) / split, "COCO's images")
        self.path = require_file(
            Path(root) / "annotations" / f"instances_{split}.json", "COCO's annotations"
        )
        self.masks = masks
        self.exif = exif
        content = read_annotations(self.path)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._check_image, content["images"]))
        check_annotations(self.path, content, masks or segmentations)
        self.coco = _index(content)
        self.transform = transform
        self.category_ids = sorted(self.coco.getCatIds())
        self.classes = [self.coco.cats[category]["name"] for category in self.category_ids]
        self.labels = {category: label for label, category in enumerate(self.category_ids)}
        self.image_ids = sorted(self.coco.getImgIds())
        if train:
            self.image_ids = [i for i in self.image_ids if self._objects(i)]
        if not any(self._objects(i) for i in self.image_ids):
            raise ValueError(
                f"{self.path}: no image with an object, other than crowds and empty boxes"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        image_id = self.image_ids[index]
        entry = self.coco.imgs[image_id]
        image = read_image(self.folder / entry["file_name"], turned=self.exif)
        size = (entry["height"], entry["width"])
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
            masks = [torch.from_numpy(self.coco.annToMask(o)) for o in objects]
            stacked = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8)
            target["masks"] = tv_tensors.Mask(stacked)
        image = tv_tensors.Image(F.pil_to_tensor(image))
        return (image, target) if self.transform is None else self.transform(image, target)

    def _objects(self, image_id: int) -> list[dict[str, Any]]:
        annotations = self.coco.imgToAnns.get(image_id, [])
        return [a for a in annotations if not a["iscrowd"] and min(a["bbox"][2:]) > 0]

    def _check_image(self, entry: dict[str, Any]) -> None:
        """See that an image is there and has the size that its annotations say."""
        path = self.folder / entry["file_name"]
        given, found = (entry["height"], entry["width"]), image_size(path, turned=self.exif)
        if found == given:
            return
        message = (
            f"{path} is {found[0]} x {found[1]} pixels, but {given[0]} x {given[1]} in {self.path}"
        )
        if self.exif and image_size(path, turned=False) == given:
            message += (
                ": its EXIF orientation turns it, but its annotations lie on it as it lies in the "
                "file; accepted the size of the turned image, or exif=False"
            )
        raise ValueError(message)


def _index(content: dict[str, Any]) -> COCO:
    """pycocotools' index, with all that it reads of an annotation filled in."""
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation["iscrowd"] = int(annotation.get("iscrowd", 0))
    coco = COCO()
    # some versions of pycocotools read what is not in every file
    coco.dataset = {"info": {}, "licenses": [], **content}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for annotation in content["annotations"]:
        if "area" not in annotation:
            annotation["area"] = _area(coco, annotation)
    return coco


def _area(coco: COCO, annotation: dict[str, Any]) -> float:
    """In pixels, as pycocotools' loadRes finds it."""
    if annotation.get("segmentation"):
        return float(rle.area(coco.annToRLE(annotation)))
    _, _, width, height = annotation["bbox"]
    return width * height
