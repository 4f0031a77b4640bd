"""A real photo at the sizes that detectors see.

scikit-learn's sample image `china.jpg` (427 x 640) stands in for a COCO image, whose most common
shape it has.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.shapes import STRIDE, Size

SHORTER_EDGE = 800
LONGEST_EDGE = 1333
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# padded size: the centred crop of the photo that COCO's resizing rule brings to it
COCO_CROPS = {(800, 1088): (427, 569), (800, 1216): (427, 640), (800, 1344): (384, 640)}


def coco_size(height: int, width: int) -> Size:
    """The size that COCO's rule resizes an image to: shorter edge 800, longer at most 1333."""
    scale = min(SHORTER_EDGE / min(height, width), LONGEST_EDGE / max(height, width))
    return round(height * scale), round(width * scale)


def padded_size(size: Size) -> Size:
    """The next multiples of the backbone's stride."""
    height, width = (-(-edge // STRIDE) * STRIDE for edge in size)
    return height, width


def centred_crop(image: Tensor, size: Size) -> Tensor:
    """The middle of an image (..., height, width)."""
    top, left = ((have - want) // 2 for have, want in zip(image.shape[-2:], size, strict=True))
    return image[..., top : top + size[0], left : left + size[1]]


@cache
def original() -> Tensor:
    """The photo as (1, 3, 427, 640) float32, normalised by ImageNet's mean and deviation."""
    pixels = torch.from_numpy(require("sklearn.datasets").load_sample_image("china.jpg").copy())
    image = pixels.permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def photo(size: Size) -> Tensor:
    """The photo at `size`, (1, 3, height, width) float32.

    The COCO sizes (800x1088, 800x1216, 800x1344) follow COCO's rule and are zero-padded; any
    other size is a plain resize of the largest centred crop with its aspect ratio.
    """
    image = original()
    if size in COCO_CROPS:
        crop = centred_crop(image, COCO_CROPS[size])
        resized = resize(crop, coco_size(*crop.shape[-2:]))
        height, width = resized.shape[-2:]
        return F.pad(resized, (0, size[1] - width, 0, size[0] - height))
    height, width = image.shape[-2:]
    scale = min(height / size[0], width / size[1])
    return resize(centred_crop(image, (int(size[0] * scale), int(size[1] * scale))), size)


def resize(image: Tensor, size: Size) -> Tensor:
    """Bilinear, antialiased."""
    return F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)


def photo_batch(size: Size, batch: int) -> Tensor:
    """`batch` images, every other one mirrored: (batch, 3, height, width) float32."""
    image = photo(size)
    return torch.cat([image.flip(-1) if index % 2 else image for index in range(batch)])
