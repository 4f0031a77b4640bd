"""Images are what their files say, in 8 bits and the way up that they are looked at."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_kernels.cli import main
from pvt_kernels.systems import classification
from pvt_kernels.systems.datasets.images import image_size, read_image
from pvt_kernels.systems.datasets.shapes import CLASSES
from pvt_kernels.systems.training import checkpoint

# 64 x 48 pixels from 3 to 250
GREY = np.linspace(3, 250, 64 * 48).round().astype(np.uint8).reshape(64, 48)
COLOURED = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def read(image, path, **options):
    image.save(path, **options)
    found = read_image(path)
    assert found.mode == "RGB" and image_size(path) == (found.height, found.width)
    return np.asarray(found).astype(int)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (GREY, "png"),
        (GREY, "tif"),
        (GREY.astype(np.uint16) * 257, "png"),
        (GREY.astype(np.uint16) * 257, "tif"),
        (GREY.astype(np.uint16) * 257, "pgm"),
        (GREY.astype(np.int32), "tif"),
        (GREY.astype(np.int32) * 257, "tif"),
        (GREY.astype(np.int32) * ((2**31 - 1) // 255), "tif"),
        (GREY.astype(np.float32), "tif"),
        (GREY.astype(np.float32) / 255, "tif"),
        (GREY.astype(np.float32) * 257, "tif"),
    ],
)
def test_grey_of_any_depth_is_the_same_in_8_bits(values, suffix, tmp_path):
    found = read(Image.fromarray(values), tmp_path / f"x.{suffix}")
    assert np.abs(found - GREY[..., None]).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_negative_values_are_scaled_from_the_least_to_the_largest(dtype, tmp_path):
    values = GREY.astype(dtype) * 7 - 900
    found = read(Image.fromarray(values), tmp_path / "x.tif")
    expected = (GREY.astype(float) - 3) * 255 / 247
    assert np.abs(found - expected[..., None]).max() <= 1


@pytest.mark.parametrize("value", [0, 7])
def test_an_image_of_one_value_is_no_error(value, tmp_path):
    found = read(Image.fromarray(np.full((8, 8), -value, np.int32)), tmp_path / "x.tif")
    assert (found == found[0, 0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value, tmp_path):
    values = GREY.astype(np.float32)
    values[5, 5] = value
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"broken image .*x\.tif: it has values that are not fin"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_every_mode_becomes_colours(mode, tmp_path):
    image = Image.fromarray(COLOURED)
    expected = COLOURED
    if mode in ("1", "LA"):
        image = Image.fromarray(GREY)
        expected = np.repeat(GREY[..., None], 3, axis=2)
    image = image.convert(mode)
    if mode == "1":
        expected = np.asarray(image)[..., None] * 255
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(GREY))
    suffix = {"CMYK": "tif", "YCbCr": "jpg"}.get(mode, "png")
    found = read(image, tmp_path / f"x.{suffix}")
    errors = np.abs(found - expected)
    assert errors.mean() < (30 if mode == "P" else 3)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_images_are_turned_as_exif_says(kind, orientation, tmp_path):
    path = tmp_path / f"x.{kind}"
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    options = {"exif": exif} | ({"quality": 100} if kind in ("jpg", "webp") else {})
    found = read(Image.fromarray(GREY).convert("RGB"), path, **options)[..., 0]
    expected = {
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY.T[:, ::-1],
        7: GREY.T[::-1, ::-1],
        8: GREY.T[::-1],
    }.get(orientation, GREY)
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 3
    if kind != "tif":  # which Pillow turns
        assert read_image(path, turned=False).size == (48, 64)
        assert image_size(path, turned=False) == (64, 48)


def test_16_bits_are_turned_as_well(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = read(Image.fromarray(GREY.astype(np.uint16) * 257), tmp_path / "x.png", exif=exif)
    assert np.abs(found[..., 0] - GREY.T[:, ::-1]).max() <= 1


def test_exif_that_nobody_can_read_turns_nothing(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(COLOURED).save(path, exif=b"Exif\0\0" + bytes(range(40)))
    assert read_image(path).size == (48, 64) and image_size(path) == (64, 48)


def png(width, height):
    """The beginning of a PNG of a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + b"\0\0\0\0"


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\xff\xd8\xff", b"GIF89a", b"II*\0", png(9, 9), png(1 << 30, 9)]
)
def test_what_is_no_image_is_named(content, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken image .*x\.jpg: \w"):
        read_image(path)
    path.unlink()
    for function in (read_image, image_size):
        with pytest.raises(FileNotFoundError, match=r"missing image .*x\.jpg"):
            function(path)


def test_predict_turns_the_photo(tmp_path, capsys):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURED).resize((640, 320)).save(path, exif=exif)
    recipe = classification.RECIPES[-1]
    model = classification.build("pvt_v2_b0", CLASSES, recipe)
    state = dict.fromkeys(checkpoint.KEYS) | {
        "system": "classification",
        "recipe": recipe.name,
        "settings": {},
        "backbone": "pvt_v2_b0",
        "classes": sorted(CLASSES),
        "model": model.state_dict(),
    }
    torch.save(state, tmp_path / "last.pt")
    arguments = [str(path), "--checkpoint", str(tmp_path / "last.pt")]
    picture = tmp_path / "picture.png"
    status = main(
        ["predict", "classification", *arguments, "--output", str(picture), "--device", "cpu"]
    )
    assert status == 0, capsys.readouterr().err
    shown = Image.open(picture).crop((0, 0, 320, 640))
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(read_image(path))).mean() < 1
