"""The command line of the systems, from data to picture."""

import re
import sys

import pytest
import torch
from PIL import Image

from pvt_kernels import models, systems
from pvt_kernels.cli import main
from pvt_kernels.systems.datasets.shapes import CLASSES
from pvt_kernels.systems.training import checkpoint

# a run of a few steps, on any system
BRIEFLY = ("iterations=2", "batch_size=4", "micro_batch=4")


def run(command, system, *arguments):
    return main([command, system, *map(str, arguments), "--device", "cpu"])


@pytest.mark.parametrize("system", systems.NAMES)
def test_a_system_trains_evaluates_and_predicts(system, shapes_data, tmp_path, capsys):
    data = shapes_data[systems.LAYOUTS[system].name]
    assert run("train", system, "--data", data, "--recipe", "shapes", "--output", tmp_path,
               "--workers", 1, "--set", *BRIEFLY) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert f"{system} on pvt_v2_b0, recipe shapes: 24 images, 2 steps of 4 images" in printed
    assert re.search(r"step 2/2  loss \d.*  lr \d.*  peak \d.* GB  left 0:00:00", printed)
    figures = re.findall(r"0\.\d{4}", printed)

    last = tmp_path / "last.pt"
    assert run("eval", system, "--data", data, "--checkpoint", last, "--workers", 0) == 0
    # the same figures as at the end of training
    assert set(re.findall(r"[01]\.\d{4}", capsys.readouterr().out)) <= set(figures) | {"1.0000"}

    image = sorted(data.rglob("*.jpg"))[0]
    picture = tmp_path / "picture.png"
    assert run("predict", system, image, "--checkpoint", last, "--output", picture) == 0
    assert Image.open(picture).width >= 320
    *lines, written = capsys.readouterr().out.splitlines()
    assert written == f"Written: {picture}"
    assert all(re.search(r"\d%", line) for line in lines) and lines
    if system == "classification":
        rows = [re.fullmatch(r" *(\d+\.\d)%  (\w+)", line) for line in lines]
        shares, classes = zip(*(row.groups() for row in rows), strict=True)
        assert len(rows) == 5 and set(classes) < set(CLASSES)
        assert sorted(map(float, shares), reverse=True) == [float(share) for share in shares]
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {
        "last", "events", "picture"
    }  # fmt: skip


def test_a_picture_does_not_land_in_the_data(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(files["DATA"].rglob("*"))
    assert run("predict", "classification", files["PHOTO"], "--checkpoint", files["last.pt"]) == 0
    assert set(files["DATA"].rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == [
        f"{files['PHOTO'].stem}-classification.png"
    ]


def test_make_data(tmp_path, capsys):
    assert main(["make-data", str(tmp_path / "data"), "--images", "24"]) == 0
    folders = {path.name for path in (tmp_path / "data").iterdir()}
    assert folders == set(re.findall(r"data/(\w+)", capsys.readouterr().out))
    assert folders == {layout.name for layout in systems.LAYOUTS.values()}
    assert main(["make-data", str(tmp_path / "data")]) == 2
    assert re.fullmatch(
        "error: path: given .*data, which is not empty.*\n", capsys.readouterr().err
    )


def test_weights_of_the_original_code_are_evaluated(shapes_data, tmp_path, capsys):
    path = tmp_path / "pvt_v2_b0.pth"
    torch.save(models.pvt_v2_b0(num_classes=6).state_dict(), path)
    given = ("--data", shapes_data["image_folder"], "--checkpoint", path, "--recipe", "shapes",
             "--workers", 0)  # fmt: skip
    assert run("eval", "classification", *given) == 0
    assert "top1" in capsys.readouterr().out


@pytest.fixture(scope="module")
def files(shapes_data, tmp_path_factory):
    """What may be given by mistake, by name."""
    folder = tmp_path_factory.mktemp("files")
    model = models.pvt_v2_b0(num_classes=6)
    state = dict.fromkeys(checkpoint.KEYS) | {
        "system": "classification",
        "recipe": "shapes",
        "settings": {},
        "backbone": "pvt_v2_b0",
        "classes": sorted(CLASSES),
        "model": model.state_dict(),
    }
    torch.save(state, folder / "last.pt")
    torch.save(state | {"classes": ["cat", "dog"]}, folder / "animals.pt")
    torch.save(model.state_dict(), folder / "pvt_v2_b0.pth")
    torch.save(models.pvt_v2_b0(num_classes=5).state_dict(), folder / "five.pth")
    torch.save({f"layer{i}": torch.zeros(1) for i in range(999)}, folder / "other.pth")
    (folder / "empty.pt").touch()
    (folder / "notes.txt").write_text("no image")
    names = {path.name: path for path in folder.iterdir()}
    image = next(shapes_data["image_folder"].rglob("*.jpg"))
    return names | {
        "DATA": shapes_data["image_folder"],
        "SHAPES": shapes_data["image_folder"].parent,
        "NEW": folder / "new",
        "FOLDER": folder,
        "PHOTO": image,
    }


TRAIN = "train classification --recipe shapes --output NEW --set batch_size=8 "
EVAL = "eval classification --data DATA --workers 0 --recipe shapes "
PREDICT = "predict classification "


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (TRAIN + "--data nowhere", "--data: given nowhere, which does not exist; accepted a folder"
         " with ImageNet's train/CLASS/*.jpg and val/CLASS/*.jpg"),
        (TRAIN + "--data PHOTO", "which is a file; accepted a folder with ImageNet's"),
        (TRAIN + "--data SHAPES", "SHAPES, accepted DATA"),
        (TRAIN + "--data FOLDER", "missing folder FOLDER/train: a folder of images for each class"),
        (TRAIN + "--data DATA --recipe paper", "recipe: given 'paper', accepted imagenet, "),
        (TRAIN + "--data DATA --output PHOTO", "--output: given PHOTO, but PHOTO is a file;"),
        (TRAIN + "--data DATA --set lr=1", "--set: lr: recipe shapes has no such field, accepted "),
        (TRAIN + "--data DATA --set image_size=-5",
         "--set: image_size: given '-5', accepted a whole number of at least 32"),
        (TRAIN + "--data DATA --set iterations=2 epochs=None",
         "--set: epochs: given 'None', accepted a whole number of at least 1"),
        (TRAIN + "--data DATA --set batch_size=99", "batch_size: given 99, but the dataset has 24"),
        (TRAIN + "--data DATA --weights none.pth",
         "--weights: given none.pth, which does not exist; accepted a classifier's checkpoint"),
        (TRAIN + "--data DATA --weights FOLDER", "--weights: given FOLDER, which is a folder;"),
        (TRAIN + "--data DATA --weights empty.pt", "weights: broken checkpoint empty.pt: the file"
         " is empty; accepted what torch.save wrote"),
        (TRAIN + "--data DATA --weights other.pth", "weights: other.pth does not fit: 178 of 178 "
         "keys are missing (patch_embed1.proj.weight, patch_embed1.proj.bias, patch_embed1.norm."
         "weight and 175 more); 999 are unknown (layer0, layer1, layer2 and 996 more); accepted "
         "weights of pvt_v2_b0"),
        (TRAIN + "--data DATA --model pvt_tiny --weights last.pt", "weights: last.pt is of "
         "classification on pvt_v2_b0, accepted classification on pvt_tiny"),
        (EVAL + "--checkpoint nowhere.pt", "--checkpoint: given nowhere.pt, which does not exist;"),
        (EVAL + "--checkpoint empty.pt", "--checkpoint: broken checkpoint empty.pt: the file is"),
        (EVAL + "--checkpoint five.pth", "--checkpoint: five.pth does not fit: 2 have another shape"
         " (head.weight is (5, 256), accepted (6, 256), head.bias is (5,), accepted (6,)); accepted"
         " weights of classification on pvt_v2_b0 with 6 classes"),
        (EVAL + "--checkpoint animals.pt", "--checkpoint: animals.pt is of 2 classes, but DATA has"
         " 6: the former alone has cat, dog, the latter circle, cross, pentagon and 3 more"),
        (EVAL + "--checkpoint last.pt --model pvt_tiny", "--model: given pvt_tiny, but last.pt is "
         "of pvt_v2_b0"),
        (EVAL + "--checkpoint last.pt --set flip=2", "--set: flip: given '2', accepted a number"),
        ("predict detr PHOTO --checkpoint last.pt", "SYSTEM: given detr, but last.pt is of classi"),
        (PREDICT + "nowhere.jpg --checkpoint last.pt", "IMAGE: given nowhere.jpg, which does not"),
        (PREDICT + "FOLDER --checkpoint last.pt", "IMAGE: given FOLDER, which is a folder; accept"),
        (PREDICT + "notes.txt --checkpoint last.pt", "IMAGE: broken image notes.txt: in no format"),
        (PREDICT + "PHOTO --checkpoint pvt_v2_b0.pth", "--checkpoint: pvt_v2_b0.pth is no "
         "checkpoint of `train`: it names no classes"),
        (PREDICT + "PHOTO --checkpoint last.pt --output x.foo", "--output: given x.foo, accepted a "
         "file in a folder that is there, with an image's suffix such as .png"),
        (PREDICT + "PHOTO --checkpoint last.pt --output no/x.png", "--output: given no/x.png, acc"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_in_one_line(command, message, files, capsys):
    def filled(text):
        words = "|".join(re.escape(name) for name in files)
        return re.sub(rf"(?<![\w-])({words})(?!\w)", lambda name: str(files[name[0]]), text)

    status = main([*filled(command).split(), "--device", "cpu"])
    error = capsys.readouterr().err
    assert status == 2 and filled(message) in error
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 1000
    assert not files["NEW"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "yolo", "--data", "x"], r"invalid choice: 'yolo' \(choose from .*classif"),
        (["train", "classification"], r"required: --data"),
        (["train", "classification", "--data", "x", "--set", "a"], r"accepted FIELD=VALUE"),
        (["train", "classification", "--data", "x", "--precision", "fp8"], r"fp32.*bf16.*fp16"),
    ],
)
def test_usage_errors_end_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def helped(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "eval", "predict", "make-data"])
def test_help_explains_every_option_with_its_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = helped(capsys, command)
    assert max(map(len, text.splitlines())) <= 80
    options = text[text.index("options:") :]
    entries = re.split(r"\n  (?=-)", options)[1:]
    for entry in entries:
        option, _, explained = entry.partition("\n" if "\n  " in entry[:40] else "  ")
        assert re.search(r"\w{2}", explained), entry
        required = option.startswith(("--data", "--checkpoint", "-h"))
        assert required or "default" in explained, entry
    if command in ("train", "eval"):
        assert "https://github.com/whai362/PVT/releases/tag/v2" in text.replace("\n", "")


@pytest.mark.parametrize("system", systems.NAMES)
def test_help_after_a_system_lists_its_recipes_and_fields(system, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = helped(capsys, "train", system)
    assert max(map(len, text.splitlines())) <= 80
    recipes = systems.load(system).recipes
    default = recipes[0]
    for recipe in recipes:
        assert re.search(rf"^  {recipe.name} +\w", text, re.MULTILINE)
    for name in set(vars(default)) - {"name", "summary", "model", "models", "schedule"}:
        value, words = re.search(rf"^  {name} +(.+?)  +(.+)$", text, re.MULTILINE).groups()
        if not isinstance(getattr(default, name), tuple):
            assert value == str(getattr(default, name))
        assert re.search("number|None|True|multiple", words)


def test_help_shows_the_recipe_that_is_given(capsys):
    text = helped(capsys, "train", "classification", "--recipe", "shapes")
    assert re.search(r"^  image_size +64  ", text, re.MULTILINE)


def test_a_missing_extra_says_how_to_install_it(capsys, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("pvt_kernels.systems.class")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert run("train", "classification", "--data", tmp_path) == 1
    error = capsys.readouterr().err
    assert "torchmetrics" in error and "pip install 'pvt_kernels[train]'" in error
