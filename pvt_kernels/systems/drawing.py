"""Answers drawn on images."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# the least width of a picture: small images are enlarged, so that text is legible
MIN_WIDTH = 320


def write_lines(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The image, enlarged if small, above lines of text."""
    scale = max(1.0, MIN_WIDTH / image.width)
    width, height = round(scale * image.width), round(scale * image.height)
    size = max(12, width // 30)
    line_height = round(1.4 * size)
    picture = Image.new("RGB", (width, height + line_height * len(lines) + size // 2), "white")
    picture.paste(image.resize((width, height)), (0, 0))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    for i, line in enumerate(lines):
        draw.text((size // 2, height + i * line_height), line, fill="black", font=font)
    return picture
