"""Answers drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# the least width of a picture: small images are enlarged, so that text is legible
MIN_WIDTH = 320
# hues that differ by it, one after the other, stay as far apart as they can
_GOLDEN_RATIO = 0.618034

_MASK_OPACITY = 0.5

Colour = tuple[int, int, int]


def class_colour(label: int) -> Colour:
    """Red, green and blue of a class, by its number: neighbours differ plainly."""
    hue, saturation, value = (
        label * _GOLDEN_RATIO % 1,
        1 - 0.15 * (label % 4),
        1 - 0.2 * (label % 3),
    )
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def write_lines(
    image: Image.Image, lines: Sequence[str], colours: Sequence[Colour] = ()
) -> Image.Image:
    """The image, enlarged if small, above lines of text, each after a square of its colour."""
    image, font = _enlarge(image)
    size = round(font.size)
    line_height = round(1.4 * size)
    height = image.height + line_height * len(lines) + size // 2
    picture = Image.new("RGB", (image.width, height), "white")
    picture.paste(image, (0, 0))
    draw = ImageDraw.Draw(picture)
    indent = 2 * size if colours else size // 2
    for i, line in enumerate(lines):
        draw.text((indent, image.height + i * line_height), line, fill="black", font=font)
    for i, colour in enumerate(colours):
        left, top = size // 2, image.height + i * line_height + size // 4
        draw.rectangle((left, top, left + size, top + size), fill=colour)
    return picture


def draw_objects(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    scores: Sequence[float],
    classes: Sequence[str],
    masks: np.ndarray | None = None,
) -> Image.Image:
    """The image, enlarged if small, with objects in their classes' colours.

    Args:
        boxes: x1, y1, x2, y2 of each, in pixels of `image`.
        labels: places in `classes`, which are written on the boxes with the scores.
        masks: (objects, image height, image width) of bool.
    """
    picture, font = _enlarge(image.convert("RGB"))
    scale = picture.width / image.width
    colours = [class_colour(label) for label in labels]
    for mask, colour in zip(masks if masks is not None else (), colours, strict=masks is not None):
        opacity = Image.fromarray((255 * _MASK_OPACITY * mask).astype(np.uint8))
        picture.paste(colour, mask=opacity.resize(picture.size))
    draw = ImageDraw.Draw(picture)
    for box, label, score, colour in zip(boxes, labels, scores, colours, strict=True):
        corners = [scale * value for value in box]
        draw.rectangle(corners, outline=colour, width=max(2, picture.width // 300))
        text = f" {classes[label]} {score:.0%} "
        _, _, width, height = draw.textbbox((0, 0), text, font=font)
        # above the box, or in it where there is no room
        x, y = corners[0], corners[1] - height if corners[1] >= height else corners[1]
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x, y), text, fill="black", font=font)
    return picture


def _enlarge(image: Image.Image) -> tuple[Image.Image, ImageFont.FreeTypeFont]:
    """The image at least MIN_WIDTH wide, and a font for it."""
    scale = max(1.0, MIN_WIDTH / image.width)
    enlarged = image.resize((round(scale * image.width), round(scale * image.height)))
    return enlarged, ImageFont.load_default(max(12, enlarged.width // 30))
