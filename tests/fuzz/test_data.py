"""Data sets with one defect each: an error that names it, or the figures of the data without it."""

import codecs
import json
import random
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_kernels.systems.coco_figures import CocoFigures
from pvt_kernels.systems.datasets.ade20k import Ade20k
from pvt_kernels.systems.datasets.coco import CocoInstances
from tests.fuzz.cases import fuzzed

pytestmark = pytest.mark.thorough

# what JSON can hold in the place of something else
JUNK = (
    None, True, False, 0, -1, 1, 0.5, 1.0, -7.5, 2**31, 2**64, 10**400, float("nan"), float("inf"),
    float("-inf"), "", "0", "1", "x", [], [[]], [0], [1, 2, 3], [1, 2, 3, 4, 5, 6, 7], {}, {"a": 1},
)  # fmt: skip
LITTER = ("._x.jpg", ".x.png", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints", "__MACOSX")
# what EXIF's orientations undo
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def coco_answers(dataset):
    return [{**target, "scores": torch.ones(len(target["labels"]))} for _, target in dataset]


@pytest.fixture(scope="module")
def truth(shapes_data):
    """What answers everything right, whatever is done to the file: by the images' names."""
    dataset = CocoInstances(shapes_data["coco"], train=False, masks=True)
    names = [dataset.coco.imgs[image_id]["file_name"] for image_id in dataset.image_ids]
    return dict(zip(names, coco_answers(dataset), strict=True)), list(dataset.classes)


def figures(dataset, answers):
    """COCO's figures of right answers."""
    evaluator = CocoFigures(dataset, torch.device("cpu"), None, masks=True)
    for i in range(len(dataset)):
        image, target = dataset[i]
        answer = answers[dataset.coco.imgs[target["image_id"]]["file_name"]]
        evaluator.update(lambda _, answer=answer: [answer], ([image], [target]))
    return evaluator.compute()


def implausible(rng, *values):
    """One of some values or of JUNK that no box, outline or category could have instead."""
    found = [v for v in (*JUNK, *values) if type(v) not in (int, float) or not -1 <= v < 200]
    return rng.choice(found)


def break_coco(rng, content):
    """Change one thing in a file's content, and say where and how."""
    kind = rng.choice(("annotations", "annotations", "annotations", "images", "categories"))
    entries = content[kind]
    place = rng.randrange(len(entries))
    entry = entries[place]
    key = rng.choice(sorted(entry))
    what = rng.choice(("junk", "junk", "junk", "remove", "inside", "repeat", "entry", "list"))
    if what == "junk":
        entry[key] = implausible(rng) if key == "category_id" else rng.choice(JUNK)
    elif what == "remove":
        del entry[key]
    elif what == "inside" and kind == "annotations":
        key = rng.choice(("bbox", "segmentation"))
        numbers = entry["bbox"] if key == "bbox" else rng.choice(entry["segmentation"])
        at = rng.randrange(len(numbers))
        if rng.random() < 0.3:
            del numbers[at]
        else:
            value = numbers[at]
            numbers[at] = implausible(rng, -value - 2, value + 1000, value - 1000)
    elif what == "repeat":
        entry["id"] = rng.choice(entries)["id"]
    elif what == "entry":
        entries[place] = rng.choice(JUNK)
    else:
        content[kind] = rng.choice(JUNK)
    return f"{kind}[{place}]", kind, key, what


def break_file(rng, path):
    """Damage a file, whatever it holds; returns in a word how."""
    content = path.read_bytes()
    how = rng.choice(("cut", "empty", "noise", "gone", "bom", "utf-16", "folder"))
    if how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "utf-16" and path.suffix in (".json", ".txt"):
        path.write_bytes(content.decode().encode("utf-16"))
    elif how == "bom":
        path.write_bytes(codecs.BOM_UTF8 + content)
    else:
        cut = content[: rng.randrange(1, len(content) // 2)]
        path.write_bytes({"cut": cut, "empty": b""}.get(how, rng.randbytes(200)))
    return how


def turn_image(rng, path):
    """Save an image as it was, turned in the file and by EXIF back."""
    orientation, turn = rng.choice(list(TURNS.items()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.transpose(turn).save(path, exif=exif, quality=95)
    return orientation


def add_litter(rng, root):
    folder = rng.choice([path for path in root.rglob("*") if path.is_dir()])
    (folder / rng.choice(LITTER)).write_bytes(rng.randbytes(9))


@fuzzed
def test_coco_files_with_a_defect(seed, shapes_data, truth, tmp_path):
    rng = random.Random(seed)
    answers, classes = truth
    root = shutil.copytree(shapes_data["coco"], tmp_path / "coco")
    path = root / "annotations" / "instances_val2017.json"
    kind = rng.choice(("content",) * 6 + ("json", "image", "turned", "litter", "renumbered"))
    names = [str(path)]
    if kind == "content":
        content = json.loads(path.read_bytes())
        place, entries, *what = break_coco(rng, content)
        path.write_text(json.dumps(content), encoding="utf-8")
        kind = f"{place} {what}"
        # of what is missing or doubled, another entry may be the one that is found
        names.append(place if "entry" in what else entries)
        if entries == "images":
            names.append("missing image")
            names.append("pixels, but")
        if entries != "annotations":
            names.append("annotations[")
    elif kind in ("image", "turned"):
        image = rng.choice(sorted((root / "val2017").iterdir()))
        kind += f" {(break_file if kind == 'image' else turn_image)(rng, image)}"
        names = [str(image)]
    elif kind == "json":
        kind += f" {break_file(rng, path)}"
    elif kind == "litter":
        add_litter(rng, root)
    else:
        content = json.loads(path.read_bytes())
        new = {e["id"]: rng.choice((-1, 1)) * (100 * i + rng.randrange(100))
               for i, e in enumerate(content["images"])}  # fmt: skip
        for entry in content["images"]:
            entry["id"] = new[entry["id"]]
        for annotation in content["annotations"]:
            annotation.update(id=rng.randrange(3), image_id=new[annotation["image_id"]])
        path.write_text(json.dumps(content), encoding="utf-8")
    try:
        dataset = CocoInstances(root, train=False, masks=True)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert "\n" not in message and any(name in message for name in names), (kind, message)
        return
    try:
        found = figures(dataset, answers)
    except ValueError as error:
        # the pixels alone are not looked at on opening
        assert kind.startswith("image") and names[0] in str(error), (kind, error)
        return
    expected = len(dataset.classes) == len(classes)
    assert expected and set(found.values()) == {1.0}, (kind, found)
    assert {"box_AP", "mask_AP"} <= found.keys(), (kind, found)


def ade20k_labels(dataset):
    return {path.name: mask for path, (_, mask) in zip(dataset.images, dataset, strict=True)}


@pytest.fixture(scope="module")
def labels(shapes_data):
    return ade20k_labels(Ade20k(shapes_data["ade20k"], train=False))


def change_mask(rng, path, classes):
    """Save a mask in another form, or with a value that it can't have."""
    values = np.array(Image.open(path))
    form = rng.choice(("255", "16 bits", "value", "size", "float", "colours", "alpha", "palette"))
    if form == "255":
        values[values == 0] = 255
    elif form == "16 bits":
        values = values.astype(np.uint16)
    elif form == "value":
        values[rng.randrange(len(values)), 0] = rng.randrange(classes + 1, 255)
    elif form == "size":
        values = values[rng.randrange(1, 9) :]
    elif form == "colours":
        values = np.stack([values] * 3, axis=2)
    image = Image.fromarray(values)
    if form == "alpha":
        image = image.convert("LA")
    elif form == "palette":
        image = image.copy()
        image.putpalette([rng.randrange(256) for _ in range(768)])
    elif form == "float":
        path.write_bytes(struct.pack(">f", 1.0))
        return form
    image.save(path)
    return form


@fuzzed
def test_ade20k_files_with_a_defect(seed, shapes_data, labels, tmp_path):
    rng = random.Random(seed)
    root = shutil.copytree(shapes_data["ade20k"], tmp_path / "ade20k")
    image = rng.choice(sorted((root / "images" / "validation").iterdir()))
    mask = root / "annotations" / "validation" / f"{image.stem}.png"
    table = root / "objectInfo150.txt"
    kind = rng.choice(("image", "mask", "mask file", "classes", "line", "turned", "litter"))
    names = [str(image)]
    if kind == "image":
        kind += f" {break_file(rng, image)}"
        names.append(str(mask))
    elif kind == "turned":
        kind += f" {turn_image(rng, image)}"
    elif kind == "mask":
        kind += f" {change_mask(rng, mask, 7)}"
        names = [str(mask)]
    elif kind == "mask file":
        kind += f" {break_file(rng, mask)}"
        names.append(str(mask))
    elif kind == "classes":
        kind += f" {break_file(rng, table)}"
        # one that is cut may be a whole one of fewer classes
        names = [str(table), "class 7 of "]
    elif kind == "line":
        lines = table.read_text(encoding="utf-8").splitlines()
        at = rng.randrange(1, len(lines))
        lines[at] = rng.choice(("", "x", "0\tx", f"{at + 1}\tx", "\t".join("abc"), f"{at}"))
        table.write_text("\n".join(lines), encoding="utf-8")
        # an empty last line is the end of a file with a class less
        names = [str(table), "class 7 of "]
    else:
        add_litter(rng, root)
    try:
        found = ade20k_labels(Ade20k(root, train=False))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert "\n" not in message and any(name in message for name in names), (kind, message)
        return
    assert found.keys() == labels.keys() - ({image.name} if "gone" in kind else set()), kind
    assert all(torch.equal(found[name], labels[name]) for name in found), kind
