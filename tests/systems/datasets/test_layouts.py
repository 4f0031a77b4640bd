"""The three layouts: what they give, and errors that name the file."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_kernels.systems.datasets.ade20k import IGNORED, Ade20k
from pvt_kernels.systems.datasets.coco import CocoInstances
from pvt_kernels.systems.datasets.image_folder import image_folder
from pvt_kernels.systems.datasets.shapes import BACKGROUND, CLASSES, make_data, scene


@pytest.fixture
def data(shapes_data, tmp_path):
    """A copy that may be broken."""
    root = shapes_data["coco"].parent
    shutil.copytree(root, tmp_path / "data")
    return {name: tmp_path / "data" / name for name in shapes_data}


def test_the_same_seed_writes_the_same_files(shapes_data, tmp_path):
    root = shapes_data["coco"].parent
    make_data(tmp_path / "again", images=24)
    make_data(tmp_path / "other", images=24, seed=1)
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    assert len(files) == 30 + (30 + 2) + (60 + 1)
    assert all((root / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    images = [f for f in files if f.suffix == ".jpg" and "image_folder" in f.parts]
    assert all((root / f).read_bytes() != (tmp_path / "other" / f).read_bytes() for f in images)


def test_make_data_overwrites_nothing(tmp_path):
    (tmp_path / "mine").write_text("kept")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match=f"path: given {path}, which is not empty"):
            make_data(path)
    with pytest.raises(ValueError, match="images: given 3, accepted 24 or more"):
        make_data(tmp_path / "new", images=3)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_a_shapes_outline_bounds_its_colour(label):
    image, shapes = scene(np.random.default_rng(label), (96, 96), [label], (20, 30))
    pixels = np.asarray(image).astype(int)
    coloured = (pixels.max(2) - pixels.min(2)) > 80
    rows, columns = np.nonzero(coloured)
    x1, y1, x2, y2 = shapes[0].box
    assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx(
        [x1, y1, x2, y2], abs=1.5
    )


@pytest.mark.parametrize("train", [True, False])
def test_image_folder(shapes_data, train):
    dataset = image_folder(shapes_data["image_folder"], train)
    assert dataset.classes == sorted(CLASSES)
    assert len(dataset) == (24 if train else 6)
    image, label = dataset[0]
    assert image.size == (64, 64) and label == 0


@pytest.mark.parametrize("train", [True, False])
def test_coco(shapes_data, train):
    dataset = CocoInstances(shapes_data["coco"], train, masks=True)
    assert tuple(dataset.classes) == CLASSES
    assert len(dataset) == (24 if train else 6)
    for image, target in dataset:
        height, width = image.shape[-2:]
        objects = len(target["labels"])
        assert image.dtype == torch.uint8 and objects >= 1
        assert target["masks"].shape == (objects, height, width)
        assert target["boxes"].shape == (objects, 4)
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert torch.tensor(found) == pytest.approx(box.numpy(), abs=2)


def test_coco_masks_are_ade20ks_classes(shapes_data):
    instances = CocoInstances(shapes_data["coco"], True, masks=True)
    dense = Ade20k(shapes_data["ade20k"], True)
    assert tuple(dense.classes) == (*CLASSES, BACKGROUND)
    for (image, target), (same, mask) in zip(instances, dense, strict=True):
        assert torch.equal(image, same)
        drawn = torch.full(mask.shape, len(CLASSES))
        for label, one in zip(target["labels"], target["masks"], strict=True):
            drawn[one.bool()] = label
        labelled = mask != IGNORED
        assert 0.8 < labelled.float().mean() < 1
        # outlines are rounded differently
        assert (drawn != mask)[labelled].float().mean() < 0.01


def test_coco_leaves_out_crowds_and_empty_boxes(data):
    path = data["coco"] / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    first = content["images"][0]["id"]
    own = [a for a in content["annotations"] if a["image_id"] == first]
    own[0]["iscrowd"] = 1
    for annotation in own[1:]:
        annotation["bbox"][2] = 0
    path.write_text(json.dumps(content))
    dataset = CocoInstances(data["coco"], True)
    assert len(dataset) == 23 and first not in dataset.image_ids


@pytest.mark.parametrize("masks", [True, False])
def test_coco_annotations_need_no_area(data, masks):
    path = data["coco"] / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    areas = [a.pop("area") for a in content["annotations"]]
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
        if not masks:
            del annotation["segmentation"]
    path.write_text(json.dumps(content))
    dataset = CocoInstances(data["coco"], False)
    found = [a["area"] for a in dataset.coco.dataset["annotations"]]
    if masks:  # a mask's pixels, where the file had its outline's inside
        assert found == pytest.approx(areas, rel=0.08)
    else:
        assert found == [a["bbox"][2] * a["bbox"][3] for a in content["annotations"]]


def break_json(change):
    def apply(root):
        path = root / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def cut(pattern):
    def apply(root):
        path = sorted(root.glob(pattern))[0]
        path.write_bytes(path.read_bytes()[:300])

    return apply


def remove(pattern):
    def apply(root):
        path = sorted(root.glob(pattern))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def text(name, content):
    return lambda root: (root / name).write_text(content)


OPENERS = {
    "image_folder": lambda root: image_folder(root, True),
    "coco": lambda root: CocoInstances(root, True, masks=True),
    "ade20k": lambda root: Ade20k(root, True),
}


@pytest.mark.parametrize(
    ("layout", "damage", "message"),
    [
        ("image_folder", remove("val"), r"missing folder .*val: a folder of images for each"),
        ("image_folder", remove("val/star"), r"only train has \['star'\], only val \[\]"),
        ("image_folder", cut("train/circle/*.jpg"), r"broken image .*circle/00000\.jpg"),
        ("coco", remove("train2017"), r"missing folder .*train2017"),
        ("coco", remove("annotations/*train*"), r"missing file .*instances_train2017\.json"),
        ("coco", cut("annotations/*train*"), r"broken annotations .*train2017\.json: .*char"),
        ("coco", remove("train2017/*"), r"missing image .*000000000001\.jpg"),
        ("coco", cut("train2017/*"), r"broken image .*000000000001\.jpg"),
        ("coco", break_json(lambda c: c.pop("images")), r"json: no list of 'images'"),
        (
            "coco",
            break_json(lambda c: c["annotations"][3].pop("bbox")),
            r"annotations\[3\] lacks \['bbox'\]",
        ),
        (
            "coco",
            break_json(lambda c: c["annotations"][0].update(category_id=99)),
            r"annotations\[0\] \(id 1\): category_id: given 99, accepted the id of one of the",
        ),
        (
            "coco",
            break_json(lambda c: c["annotations"][0].update(segmentation=[[1]])),
            r"annotations\[0\] \(id 1\): segmentation: a polygon of 1 numbers",
        ),
        (
            "coco",
            break_json(lambda c: c["images"][0].update(width=7)),
            r"000000000001\.jpg is \d+ x \d+ pixels, but \d+ x 7 in .*json",
        ),
        ("ade20k", remove("objectInfo150.txt"), r"missing file .*objectInfo150\.txt"),
        ("ade20k", text("objectInfo150.txt", "Idx\tName\n2\tx\n"), r"line 2: given '2\\tx'"),
        ("ade20k", text("objectInfo150.txt", "Idx\tName\n1\tx\n"), r"00000\d+\.png: class \d of 1"),
        ("ade20k", remove("annotations/training/*"), r"missing annotation .*train_00000001\.png"),
        ("ade20k", cut("images/training/*"), r"broken image .*train_00000001\.jpg"),
        (
            "ade20k",
            lambda root: Image.new("L", (9, 9)).save(
                root / "annotations" / "training" / "ADE_train_00000001.png"
            ),
            r"broken annotation .*train_00000001\.png: \(1, 9, 9\) for an image of",
        ),
    ],
)
def test_what_is_missing_or_broken_is_named(data, layout, damage, message):
    damage(data[layout])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        for _ in OPENERS[layout](data[layout]):
            pass
