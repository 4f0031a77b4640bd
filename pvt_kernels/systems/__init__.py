"""The systems in which the PVT paper proves its backbone, each in a file of its name."""

from dataclasses import dataclass
from importlib import import_module

from pvt_kernels.systems.training.system import System


@dataclass(frozen=True)
class Layout:
    """How a data set lies in a folder.

    Attributes:
        name: what generated data in this layout is called.
        holds: what is in the folder.
    """

    name: str
    holds: str


IMAGE_FOLDER = Layout("image_folder", "ImageNet's train/CLASS/*.jpg and val/CLASS/*.jpg")
COCO = Layout("coco", "COCO's train2017/, val2017/ and annotations/instances_*.json")
ADE20K = Layout("ade20k", "ADE20K's images/, annotations/ and objectInfo150.txt")

# what each system reads
LAYOUTS = {
    "classification": IMAGE_FOLDER,
    "retinanet": COCO,
    "mask_rcnn": COCO,
    "detr": COCO,
    "semantic_fpn": ADE20K,
    "trans2seg": ADE20K,
}
NAMES = tuple(LAYOUTS)


def load(name: str) -> System:
    """Return the system called `name`, one of NAMES; it is imported only now.

    Raises:
        ValueError: there is no such system.
        ModuleNotFoundError: a package that it is built from is missing.
    """
    if name not in NAMES:
        raise ValueError(f"system: given {name!r}, accepted {', '.join(NAMES)}")
    return import_module(f"pvt_kernels.systems.{name}").SYSTEM
