"""What COCO's annotations may be, and that what they may not be is named on opening."""

import codecs
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from pvt_kernels.systems.coco_figures import CocoFigures
from pvt_kernels.systems.datasets.coco import CocoInstances
from pvt_kernels.systems.datasets.coco_format import _decoded


@pytest.fixture
def root(shapes_data, tmp_path):
    """A copy that may be broken."""
    return shutil.copytree(shapes_data["coco"], tmp_path / "coco")


def changed(root, change):
    """Let `change` have its way with the annotations to test."""
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content = change(content) or content
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def figures_of_truth(root):
    """What the annotations are worth as answers to themselves."""
    dataset = CocoInstances(root, train=False, masks=True)
    evaluator = CocoFigures(dataset, torch.device("cpu"), None, masks=True)
    for image, target in dataset:
        answer = {**target, "scores": torch.ones(len(target["labels"]))}
        evaluator.update(lambda _, answer=answer: [answer], ([image], [target]))
    return evaluator.compute()


def renumber(kind, ids):
    """Give images or annotations the ids that `ids` makes of their places."""

    def change(content):
        new = {entry["id"]: ids(i) for i, entry in enumerate(content[kind])}
        for entry in content[kind]:
            entry["id"] = new[entry["id"]]
        if kind == "images":
            for annotation in content["annotations"]:
                annotation["image_id"] = new[annotation["image_id"]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        renumber("annotations", lambda i: i),
        renumber("annotations", lambda i: 1 + i % 2),
        renumber("annotations", lambda i: 0),
        renumber("annotations", lambda i: -i),
        renumber("annotations", lambda i: 2**53 + i),
        renumber("images", lambda i: i),
        renumber("images", lambda i: -i),
        renumber("images", lambda i: 2**63 - 1 - i),
        renumber("images", lambda i: 100 - 7 * i),
    ],
)
def test_the_truth_is_right_with_whatever_ids(root, change):
    changed(root, change)
    figures = figures_of_truth(root)
    assert set(figures.values()) == {1.0} and {"box_AP", "mask_AP"} <= figures.keys()


def test_every_versions_of_pycocotools_finds_what_it_reads(root):
    """2.0.9 and 2.0.10 copy the info, which many files lack."""
    content = CocoInstances(root, train=False).coco.dataset
    assert content["info"] == {} and content["licenses"] == []


def test_a_byte_order_mark_is_no_part_of_json(root):
    path = root / "annotations" / "instances_val2017.json"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert len(CocoInstances(root, train=False)) == 6


def test_names_are_utf8_in_any_locale(root):
    path = root / "annotations" / "instances_val2017.json"
    text = path.read_text(encoding="utf-8").replace('"circle"', '"Kreis · 円"')
    path.write_bytes(text.encode("utf-8"))
    assert CocoInstances(root, train=False).classes[0] == "Kreis · 円"
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match=r"instances_val2017\.json: not in UTF-8: .* 0xff"):
        CocoInstances(root, train=False)


def test_compressed_and_uncompressed_rles_are_masks(root):
    before = [target["masks"] for _, target in CocoInstances(root, train=False, masks=True)]

    def change(content):
        sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in content["images"]}
        for annotation in content["annotations"]:
            size = sizes[annotation["image_id"]]
            code = rle.merge(rle.frPyObjects(annotation["segmentation"], *size))
            counts = code["counts"].decode()
            if annotation["id"] % 2:
                counts = _decoded(counts)
            annotation["segmentation"] = {"size": list(code["size"]), "counts": counts}

    changed(root, change)
    after = [target["masks"] for _, target in CocoInstances(root, train=False, masks=True)]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 500)])
@pytest.mark.parametrize("filled", [0.0, 0.01, 0.5, 1.0])
def test_compressed_counts_are_decoded(shape, filled):
    mask = np.random.default_rng(0).random(shape) < filled
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    counts = np.diff([0, *edges, flat.size]).tolist()
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert _decoded(code) == counts


def entry(kind, i, **values):
    """Set keys of an entry."""

    def change(content):
        content[kind][i].update(values)

    return change


def without(kind, i, key):
    return lambda content: content[kind][i].pop(key) and None


def code(**values):
    """A segmentation as RLE, good but for `values`; the size is the image's."""

    def change(content):
        image = content["images"][0]
        size = [image["height"], image["width"]]
        good = {"size": size, "counts": [size[0] * size[1] - 9, 9]}
        made = {k: v(size) if callable(v) else v for k, v in values.items()}
        content["annotations"][0].update(segmentation=good | made)

    return change


def duplicate(kind, i):
    return lambda content: content[kind].append(dict(content[kind][i]))


ANNOTATION = r"annotations\[0\] \(id 1\): "
DEFECTS = [
    (lambda content: [content], r"a list, accepted an object with lists of images, categories"),
    (lambda content: content.pop("categories") and None, "no list of 'categories'"),
    (lambda content: content.update(annotations={}), "no list of 'annotations'"),
    (lambda content: content["annotations"].append(None), r"annotations\[\d+\] is null, no object"),
    (lambda content: content.update(annotations=[]), "no image with an object"),
    *(
        (without("annotations", 0, key), rf"annotations\[0\] lacks \['{key}'\]")
        for key in ("id", "image_id", "category_id", "bbox")
    ),
    *(
        (without("images", 0, key), rf"images\[0\] lacks \['{key}'\]")
        for key in ("id", "file_name", "height", "width")
    ),
    (without("categories", 1, "id"), r"categories\[1\] lacks \['id'\]"),
    (without("categories", 1, "name"), r"categories\[1\] lacks \['name'\]"),
    (duplicate("images", 0), r"images\[0\] and images\[6\] have the same id, 1"),
    (duplicate("categories", 0), r"categories\[0\] and categories\[6\] have the same id, 1"),
    (entry("categories", 1, name="circle"), r"\[0\] and categories\[1\] have the same name"),
    *(
        (entry(kind, 0, id=value), rf"{kind}\[0\]: id: given {re.escape(json.dumps(value))}, acc")
        for kind in ("images", "categories", "annotations")
        for value in ("1", 1.0, None, True, [1], 2**64)
    ),
    *(
        (entry("annotations", 0, **{key: value}), rf"{ANNOTATION}{key}: given ")
        for key in ("image_id", "category_id")
        for value in ("1", 1.0, None, 999, [1], True)
    ),
    *(
        (entry("annotations", 0, area=value), ANNOTATION + "area: given ")
        for value in (None, "9", -1, float("nan"), float("inf"), True, [9], 1e9, 10**400)
    ),
    *(
        (entry("annotations", 0, iscrowd=value), ANNOTATION + "iscrowd: given ")
        for value in (None, "0", 2, -1, 0.0, [])
    ),
    *(
        (entry("annotations", 0, bbox=value), ANNOTATION + "bbox: given ")
        for value in (
            None,
            [],
            "1 2 3 4",
            [1, 2, 3],
            [1, 2, 3, 4, 5],
            [1, 2, None, 4],
            [1, 2, "3", 4],
            [1, float("nan"), 3, 4],
            [1, 2, float("inf"), 4],
            [float("-inf"), 2, 3, 4],
            [10, 10, -5, 5],
            [10, 10, 5, -5],
            [-20, 10, 30, 5],
            [10, 10, 500, 5],
            [10, 10, 5, 500],
            [500, 500, 5, 5],
            [10, 10, 10**400, 5],
        )
    ),
    *(
        (entry("annotations", 0, segmentation=value), ANNOTATION + "segmentation: ")
        for value in (
            None,
            [],
            "polygon",
            7,
            [[]],
            [[1, 2, 3, 4]],
            [[1, 2, 3, 4, 5, 6, 7]],
            [1, 2, 3, 4, 5, 6],
            [[1, 2, 3, 4, 5, None]],
            [[1, 2, 3, 4, 5, float("nan")]],
            [[1, 2, 3, 4, 5, 1e9]],
            [[1, 2, 9, 2, 9, 9], [1, 2]],
            [[-40, 2, 9, 2, 9, 9]],
        )
    ),
    (code(size=[9, 9]), r"segmentation: an RLE of size \[9, 9\], accepted \[\d+, \d+\]"),
    (code(size=None), "segmentation: an RLE of size null"),
    (code(counts=None), "segmentation: an RLE of counts null, accepted whole numbers"),
    (code(counts=[3, 4]), "segmentation: an RLE whose counts are together 7, "),
    (code(counts=lambda size: [size[0] * size[1] + 5, -5]), "of which the least is -5"),
    (code(counts=lambda size: [float(size[0] * size[1])]), "segmentation: an RLE of counts"),
    (code(counts=""), "segmentation: an RLE of counts \"\", which are not in its code"),
    (code(counts="ü"), "segmentation: an RLE of counts"),
    (code(counts="0000"), "segmentation: an RLE whose counts are together 0"),
    (code(counts="ooooooooooo1"), "segmentation: an RLE of counts"),
    *(
        (entry("images", 0, **{key: value}), rf"images\[0\] \(id 1\): {key}: given ")
        for key, values in (
            ("width", (None, "128", 128.0, 0, -128, True)),
            ("height", (None, 0)),
            ("file_name", (None, "", 7)),
        )
        for value in values
    ),
    (entry("categories", 0, name=None), r"categories\[0\] \(id 1\): name: given null"),
    (entry("images", 0, width=9), r"000000000001\.jpg is \d+ x \d+ pixels, but \d+ x 9 in .*json"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DEFECTS)
def test_a_defect_is_named_on_opening(root, change, message):
    path = changed(root, change)
    with pytest.raises(ValueError, match=message) as raised:
        CocoInstances(root, train=False, segmentations=True)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_boxes_alone_need_no_segmentation(root):
    def change(content):
        for i, annotation in enumerate(content["annotations"]):
            annotation["segmentation"] = (None, [])[i % 2]

    changed(root, change)
    assert len(CocoInstances(root, train=False)) == 6


def test_boxes_may_reach_out_by_a_pixel(root):
    """Tools round, and count from 1."""

    def change(content):
        image = content["images"][0]
        content["annotations"][0]["bbox"] = [-1, -0.5, image["width"] + 2, image["height"] + 1]

    changed(root, change)
    _, target = CocoInstances(root, train=False)[0]
    height, width = target["boxes"].canvas_size
    assert target["boxes"][0].tolist() == [0, 0, width, height]


def turn(root, orientation):
    """Let EXIF say that the first image to test is to be turned; its pixels stay as they are."""
    path = root / "val2017" / "000000000001.jpg"
    image = Image.open(path).resize((160, 128))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return image


def small_objects(content):
    """Make those in the first image fit whichever way it is turned."""
    for annotation in content["annotations"]:
        if annotation["image_id"] == 1:
            annotation.update(bbox=[1, 2, 30, 40], segmentation=[[1, 2, 31, 2, 31, 42]], area=600)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_lie_on_the_turned_image(root, orientation):
    stored = turn(root, orientation)
    height, width = (160, 128) if orientation >= 5 else (128, 160)
    changed(root, entry("images", 0, height=height, width=width))
    changed(root, small_objects)
    image, _ = CocoInstances(root, train=False)[0]
    assert image.shape == (3, height, width)
    stored_pixels = torch.from_numpy(np.array(stored)).permute(2, 0, 1).float()
    there = {
        1: stored_pixels,
        2: stored_pixels.flip(2),
        3: stored_pixels.flip(1, 2),
        4: stored_pixels.flip(1),
        5: stored_pixels.transpose(1, 2),
        6: stored_pixels.transpose(1, 2).flip(2),
        7: stored_pixels.transpose(1, 2).flip(1, 2),
        8: stored_pixels.transpose(1, 2).flip(1),
    }[orientation]
    assert (image.float() - there).abs().mean() < 3


def test_annotations_on_stored_pixels_need_to_say_so(root):
    turn(root, 6)
    changed(root, entry("images", 0, height=128, width=160))
    changed(root, small_objects)
    message = r"000000000001\.jpg is 160 x 128 pixels, but 128 x 160 in .*EXIF.*exif=False"
    with pytest.raises(ValueError, match=message):
        CocoInstances(root, train=False)
    image, _ = CocoInstances(root, train=False, exif=False)[0]
    assert image.shape == (3, 128, 160)
