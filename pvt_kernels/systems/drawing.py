"""Answers drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# the least width of a picture: small images are enlarged, so that text is legible
MIN_WIDTH = 320

_MASK_OPACITY = 0.5


def write_lines(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The image, enlarged if small, above lines of text."""
    image, font = _enlarge(image)
    size = round(font.size)
    line_height = round(1.4 * size)
    height = image.height + line_height * len(lines) + size // 2
    picture = Image.new("RGB", (image.width, height), "white")
    picture.paste(image, (0, 0))
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        draw.text((size // 2, image.height + i * line_height), line, fill="black", font=font)
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
    colours = [_colour(label, len(classes)) for label in labels]
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


def _colour(label: int, classes: int) -> tuple[int, int, int]:
    rgb = colorsys.hsv_to_rgb(label / classes, 0.7, 1.0)
    return tuple(round(255 * value) for value in rgb)
