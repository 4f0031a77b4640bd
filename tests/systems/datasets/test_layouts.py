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


LITTER = (
    "._00000.jpg",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    ".ipynb_checkpoints/00000-checkpoint.jpg",
    "__MACOSX/00000.jpg",
    ".hidden.png",
)


@pytest.mark.parametrize("layout", ["image_folder", "coco", "ade20k"])
def test_hidden_files_and_folders_are_no_data(data, layout):
    opened = OPENERS[layout](data[layout])
    before = len(opened), list(opened.classes)
    folders = [data[layout], *(path for path in data[layout].rglob("*") if path.is_dir())]
    for folder in folders:
        for name in LITTER:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"no image")
    opened = OPENERS[layout](data[layout])
    assert (len(opened), list(opened.classes)) == before
    assert len([sample for sample in opened]) == before[0]


def test_data_in_a_hidden_folder_is_data(data, tmp_path):
    hidden = data["image_folder"].rename(tmp_path / ".cache")
    assert len(image_folder(hidden, True)) == 24


def masks_of(root):
    return [mask for _, mask in Ade20k(root, True)]


def rewrite_masks(root, change):
    """Save what `change` makes of the values (H, W) of each mask."""
    for path in (root / "annotations" / "training").iterdir():
        values = np.array(Image.open(path))
        Image.fromarray(change(values)).save(path)


def test_255_is_no_class(data):
    root = data["ade20k"]
    before = masks_of(root)
    rewrite_masks(root, lambda values: np.where(values == 0, 255, values).astype(np.uint8))
    assert all(map(torch.equal, before, masks_of(root)))


def test_255_classes_have_numbers_to_255(data):
    root = data["ade20k"]
    rows = [f"{i}\t{i}" for i in range(1, 256)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tName", *rows]))
    rewrite_masks(root, lambda values: np.where(values == 0, 255, values).astype(np.uint8))
    assert max(mask.max() for mask in masks_of(root)) == 254
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tName", *rows, "256\tx"]))
    with pytest.raises(ValueError, match="256 classes below the heading, accepted 1 to 255"):
        Ade20k(root, True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_may_have_more_bits(data, dtype):
    root = data["ade20k"]
    before = masks_of(root)
    rewrite_masks(root, lambda values: values.astype(dtype))
    assert all(map(torch.equal, before, masks_of(root)))


COLOURS = np.array([[250, 10 * i, 3] for i in range(7)], dtype=np.uint8)


@pytest.mark.parametrize("alpha", [False, True])
def test_masks_in_colours_need_a_palette(data, alpha):
    root = data["ade20k"]
    before = masks_of(root)
    table = np.concatenate([[[0, 0, 0]], COLOURS]).astype(np.uint8)
    if alpha:
        table = np.concatenate([table, np.full((8, 1), 255, np.uint8)], axis=1)
    rewrite_masks(root, lambda values: table[values])
    message = r"png is in colours: put each class's into .*ade20k/palette\.txt, a line of red"
    with pytest.raises(ValueError, match=message):
        masks_of(root)
    lines = [" ".join(map(str, colour)) for colour in COLOURS.tolist()]
    (root / "palette.txt").write_text("\n".join(lines))
    assert all(map(torch.equal, before, masks_of(root)))
    (root / "palette.txt").write_text("\n".join(["9 9 9", *lines[1:]]))
    with pytest.raises(ValueError, match=r"png: colour 250 0 3 is not in .*palette\.txt"):
        masks_of(root)
    for broken, reason in (
        (lines[:-1], "6 colours, 6 of them different; accepted a colour for each of the 7"),
        ([lines[1], *lines[1:]], "7 colours, 6 of them different"),
        ([*lines[:-1], "1 2"], "line 7: given '1 2', accepted red, green and blue"),
        ([*lines[:-1], "1 2 256"], "line 7: given '1 2 256'"),
    ):
        (root / "palette.txt").write_text("\n".join(broken))
        with pytest.raises(ValueError, match=rf"palette\.txt.*{reason}"):
            Ade20k(root, True)


def test_ade20ks_annotations_lie_on_the_turned_image(data):
    root = data["ade20k"]
    name = "ADE_train_00000001"
    image_file = root / "images" / "training" / f"{name}.jpg"
    mask_file = root / "annotations" / "training" / f"{name}.png"
    upright, before = Ade20k(root, True)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(image_file) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(image_file, exif=exif, quality=95)
    turned, mask = Ade20k(root, True)[0]
    assert turned.shape == upright.shape and torch.equal(mask, before)
    assert (turned.float() - upright.float()).abs().mean() < 3
    with Image.open(mask_file) as stored:
        stored.transpose(Image.Transpose.ROTATE_90).save(mask_file)
    if upright.shape[1] != upright.shape[2]:
        with pytest.raises(ValueError, match=r"_00000001\.png: .* EXIF .*exif=False"):
            Ade20k(root, True)
    image, mask = Ade20k(root, True, exif=False)[0]
    assert torch.equal(mask, before.rot90(1, (0, 1))) and image.shape[1:] == mask.shape


def test_the_classes_file_is_utf8(data):
    path = data["ade20k"] / "objectInfo150.txt"
    text = path.read_text(encoding="utf-8").replace("star", "étoile")
    path.write_bytes(text.encode("utf-8-sig"))
    assert "étoile" in Ade20k(data["ade20k"], True).classes
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt: not in UTF-8"):
        Ade20k(data["ade20k"], True)


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
            r"broken annotation .*train_00000001\.png: \(9, 9\) for an image of",
        ),
    ],
)
def test_what_is_missing_or_broken_is_named(data, layout, damage, message):
    damage(data[layout])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        for _ in OPENERS[layout](data[layout]):
            pass
