"""Reads COCO's annotations, and says which of them are no such thing.

pycocotools checks nothing: what is wrong raises in the middle of a run, after training, or not at
all. Here a file is read as a whole or refused, with the first entry that is at fault.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

# in pixels: how far boxes and outlines may reach out of their image, since tools round
_MARGIN = 1
# ids are NumPy's int64 in pycocotools
_LARGEST_ID = 2**63 - 1
# the corners of a box, which pycocotools takes four numbers for
_LEAST_OUTLINE = 6

_NUMBERS = {int, float}
_NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists in a file; of the annotations it is only known that they have what they need.

    Args:
        path: JSON in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: an image or a category can't be used, or an annotation lacks something; names
            the file, the entry and what is accepted.
    """
    content = _parse(path)
    for key, needed in _NEEDED.items():
        _check_list(path, content, key, needed)
    images, categories = content["images"], content["categories"]
    _refuse(path, "images", images, _image_fault)
    _refuse(path, "categories", categories, _category_fault)
    _check_unique(path, "images", "id", images)
    _check_unique(path, "categories", "id", categories)
    _check_unique(path, "categories", "name", categories)
    return {key: content[key] for key in _NEEDED}


def check_annotations(path: Path, content: dict[str, Any], segmentations: bool) -> None:
    """See that every annotation in what `read_annotations` returned can be used.

    Args:
        path: of the file, in errors.
        segmentations: whether every annotation must have one.

    Raises:
        ValueError: one can't; names the file, the annotation and what is accepted.
    """
    images = {entry["id"]: entry for entry in content["images"]}
    categories = {entry["id"] for entry in content["categories"]}

    def fault(annotation: dict[str, Any]) -> str | None:
        return _annotation_fault(annotation, images, categories, segmentations)

    _refuse(path, "annotations", content["annotations"], fault)


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"broken annotations {path}: not in UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken annotations {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"broken annotations {path}: a {type(content).__name__}, accepted an object with "
            f"lists of {', '.join(_NEEDED)}"
        )
    return content


def _check_list(path: Path, content: dict[str, Any], key: str, needed: tuple[str, ...]) -> None:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"broken annotations {path}: no list of {key!r}")
    for i, entry in enumerate(entries):
        if type(entry) is not dict:
            raise ValueError(f"broken annotations {path}: {key}[{i}] is {_short(entry)}, no object")
        missing = [name for name in needed if name not in entry]
        if missing:
            raise ValueError(f"broken annotations {path}: {key}[{i}] lacks {missing}")
        if not _is_id(entry["id"]):
            raise ValueError(
                f"broken annotations {path}: {key}[{i}]: id: given {_short(entry['id'])}, "
                "accepted a whole number"
            )


def _refuse(
    path: Path, key: str, entries: Iterable[dict], fault: Callable[[dict], str | None]
) -> None:
    for i, entry in enumerate(entries):
        reason = fault(entry)
        if reason:
            raise ValueError(f"broken annotations {path}: {key}[{i}] (id {entry['id']}): {reason}")


def _check_unique(path: Path, key: str, name: str, entries: list[dict]) -> None:
    first: dict[Any, int] = {}
    for i, entry in enumerate(entries):
        value = entry[name]
        if first.setdefault(value, i) != i:
            raise ValueError(
                f"broken annotations {path}: {key}[{first[value]}] and {key}[{i}] have the same "
                f"{name}, {_short(value)}"
            )


def _image_fault(image: dict[str, Any]) -> str | None:
    name = image["file_name"]
    if not isinstance(name, str) or not name:
        return f"file_name: given {_short(name)}, accepted a name"
    for edge in ("height", "width"):
        if type(image[edge]) is not int or image[edge] < 1:
            return f"{edge}: given {_short(image[edge])}, accepted a whole number of pixels above 0"
    return None


def _category_fault(category: dict[str, Any]) -> str | None:
    name = category["name"]
    if not isinstance(name, str) or not name:
        return f"name: given {_short(name)}, accepted a name"
    return None


def _annotation_fault(
    annotation: dict[str, Any],
    images: dict[int, dict[str, Any]],
    categories: set[int],
    segmentations: bool,
) -> str | None:
    image_id, category = annotation["image_id"], annotation["category_id"]
    if not _is_id(image_id) or image_id not in images:
        return f"image_id: given {_short(image_id)}, accepted the id of one of the images"
    if not _is_id(category) or category not in categories:
        return f"category_id: given {_short(category)}, accepted the id of one of the categories"
    image = images[image_id]
    height, width = image["height"], image["width"]
    if annotation.get("iscrowd", 0) not in (0, 1) or type(annotation.get("iscrowd", 0)) is float:
        return f"iscrowd: given {_short(annotation['iscrowd'])}, accepted 0 or 1"
    reason = _box_fault(annotation["bbox"], height, width)
    if reason:
        return reason
    if "area" in annotation:
        area = annotation["area"]
        most = (height + 2 * _MARGIN) * (width + 2 * _MARGIN)
        if type(area) not in _NUMBERS or not 0 <= area <= most:
            return (
                f"area: given {_short(area)}, accepted a number of pixels from 0 to the image's "
                f"{height} x {width}"
            )
    segmentation = annotation.get("segmentation")
    if segmentation or isinstance(segmentation, (int, float)):
        return _segmentation_fault(segmentation, height, width)
    if segmentations:
        return f"segmentation: given {_short(segmentation)}, accepted polygons or an RLE"
    return None


def _box_fault(box: Any, height: int, width: int) -> str | None:
    if type(box) is not list or len(box) != 4 or not _NUMBERS.issuperset(map(type, box)):
        return f"bbox: given {_short(box)}, accepted four numbers: x, y, width and height in pixels"
    x, y, w, h = box
    if not (abs(x) < math.inf and abs(y) < math.inf and 0 <= w < math.inf and 0 <= h < math.inf):
        return f"bbox: given {_short(box)}, accepted finite numbers, the last two of at least 0"
    if min(x, y) < -_MARGIN or w > width + _MARGIN - x or h > height + _MARGIN - y:
        return (
            f"bbox: given {_short(box)}, which is not inside its image of {width} pixels a row and "
            f"{height} rows; accepted x, y, width and height"
        )
    return None


def _segmentation_fault(segmentation: Any, height: int, width: int) -> str | None:
    if type(segmentation) is list:
        return _outlines_fault(segmentation, height, width)
    if type(segmentation) is dict:
        reason = _rle_fault(segmentation, height, width)
        return reason and f"segmentation: {reason}"
    return f"segmentation: given {_short(segmentation)}, accepted polygons or an RLE"


def _outlines_fault(outlines: list[Any], height: int, width: int) -> str | None:
    for outline in outlines:
        if type(outline) is not list or not _NUMBERS.issuperset(map(type, outline)):
            return f"segmentation: given {_short(outline)}, accepted lists of numbers"
        if len(outline) < _LEAST_OUTLINE or len(outline) % 2:
            return (
                f"segmentation: a polygon of {len(outline)} numbers, accepted x and y of at least "
                "three points"
            )
        xs, ys = outline[::2], outline[1::2]
        if (
            min(min(xs), min(ys)) < -_MARGIN
            or max(xs) > width + _MARGIN
            or max(ys) > height + _MARGIN
        ):
            return (
                f"segmentation: a polygon within x from {min(xs)} to {max(xs)} and y from "
                f"{min(ys)} to {max(ys)}, which is not inside its image of {width} pixels a row "
                f"and {height} rows"
            )
        if math.isnan(sum(outline)):
            return f"segmentation: given {_short(outline)}, accepted finite numbers"
    return None


def _rle_fault(code: dict[str, Any], height: int, width: int) -> str | None:
    size = code.get("size")
    if size != [height, width] or set(map(type, size)) != {int}:
        return f"an RLE of size {_short(size)}, accepted [{height}, {width}], its image's"
    counts = code.get("counts")
    if type(counts) is str:
        try:
            counts = _decoded(counts)
        except ValueError:
            return f"an RLE of counts {_short(counts)}, which are not in its code"
    elif type(counts) is not list or set(map(type, counts)) - {int}:
        return f"an RLE of counts {_short(counts)}, accepted whole numbers, or their code as text"
    if min(counts, default=-1) < 0 or sum(counts) != height * width:
        return (
            f"an RLE whose counts are together {sum(counts)}, of which the least is "
            f"{min(counts, default=None)}; accepted numbers of at least 0 that are together "
            f"{height} x {width}"
        )
    return None


def _decoded(text: str) -> list[int]:
    """The counts of a compressed RLE: numbers of 5 bits a character, from the third on differences.

    See rleFrString of pycocotools, which reads whatever stands there.
    """
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() >= 64 or codes[-1] & 32:
        raise ValueError
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:  # beyond any image
        raise ValueError
    values = np.add.reduceat((codes & 31) << 5 * places, starts)
    values -= np.where(codes[ends] & 16, 1 << 5 * (ends - starts + 1), 0)
    # each but the first three adds to the one before the last
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values.tolist()


def _is_id(value: Any) -> bool:
    return type(value) is int and -_LARGEST_ID <= value <= _LARGEST_ID


def _short(value: Any) -> str:
    """A value as JSON has it, if need be cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
