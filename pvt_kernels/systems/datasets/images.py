"""Reading images, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError


def read_image(path: str | Path, mode: str = "RGB") -> Image.Image:
    """Decode a whole image.

    Args:
        path: of any format that Pillow reads.
        mode: the image is converted to, as Pillow names it; "" leaves it as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be decoded: not an image, or cut short.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert(mode) if mode else image.copy()
    except FileNotFoundError:
        raise FileNotFoundError(f"missing image {path}") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"broken image {path}: in no format that Pillow reads") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"broken image {path}: {error}") from error


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
