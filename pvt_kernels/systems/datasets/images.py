"""Images as their files say, and errors that name the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# what turns an image the way that EXIF says it is looked at; 1 is as it lies in the file
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
# formats whose values of more than 8 bits Pillow gives in 16, which older versions call "I"
_OF_16_BITS = ("PNG", "PPM")

# that open images at once, since a disk in a network takes its time for each
THREADS = 16
# what systems, archives and notebooks leave in folders, beside names that begin with a dot
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


def read_image(path: str | Path, mode: str = "RGB", turned: bool = True) -> Image.Image:
    """Decode a whole image.

    Values of more than 8 bits are scaled to 8 where `mode` has 8: those of 16 bits by their range,
    and integers of 32 bits and floats, which have none, by the fewest bits from 8 on that hold the
    largest value, or as parts of 1 where no float is larger, or where some are negative from the
    least to the largest. Transparency is left out, as torchvision does.

    Args:
        path: of any format that Pillow reads.
        mode: the image is converted to, as Pillow names it; "" leaves it as it is.
        turned: whether it is turned and mirrored as its EXIF orientation says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be decoded: not an image, cut short, or with values that are not
            finite.
    """
    with _naming(path), Image.open(path) as opened:
        opened.load()
        # of TIFFs Pillow does it itself, and takes the tag away
        turn = _TURNS.get(_orientation(opened)) if turned else None
        image = opened if turn is None else opened.transpose(turn)
        if mode and (image.mode in ("I", "F") or image.mode.startswith("I;")):
            image = _of_8_bits(image, known=opened.format in _OF_16_BITS)
        return image.convert(mode) if mode else image.copy()


def image_size(path: str | Path, turned: bool = True) -> tuple[int, int]:
    """Height and width of what `read_image` returns, from the file's first bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image.
    """
    with _naming(path), Image.open(path) as image:
        width, height = image.size
        on_its_side = turned and image.format != "TIFF" and _orientation(image) in _ON_ITS_SIDE
        return (width, height) if on_its_side else (height, width)


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Say which image is missing or broken."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"missing image {path}") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"broken image {path}: in no format that Pillow reads") from error
    except Exception as error:  # decoders raise whatever comes up
        raise ValueError(f"broken image {path}: {error or type(error).__name__}") from error


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF that nobody can read turns nothing, in viewers too
        return None


def _of_8_bits(image: Image.Image, known: bool) -> Image.Image:
    """Scale one channel of more than 8 bits; `known` where the format says that they are 16."""
    values = np.asarray(image)
    least, largest = values.min(), values.max()
    if not np.isfinite([least, largest]).all():
        raise ValueError("it has values that are not finite")
    if known or image.mode.startswith("I;16"):
        least, largest = 0, 2**16 - 1
    elif least >= 0:
        parts = image.mode == "F" and largest <= 1
        least, largest = 0, 1 if parts else 2 ** max(8, int(largest).bit_length()) - 1
    span = float(largest) - float(least) or 1.0
    scaled = (values.astype(np.float64) - float(least)) * (255 / span)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def is_litter(name: str) -> bool:
    """Whether a file or folder is none of the data: hidden, or what systems leave in folders."""
    return name.startswith(".") or name.lower() in _LITTER


def require_folder(path: Path, holds: str) -> Path:
    """Return `path`, which must be a folder.

    Raises:
        FileNotFoundError: it is not; the message says what it should hold.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"missing folder {path}: {holds}")
    return path


def require_file(path: Path, holds: str) -> Path:
    """Return `path`, which must be a file.

    Raises:
        FileNotFoundError: it is not; the message says what it should hold.
    """
    if not path.is_file():
        raise FileNotFoundError(f"missing file {path}: {holds}")
    return path
