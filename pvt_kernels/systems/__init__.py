"""The systems in which the PVT paper proves its backbone, each in a file of its name."""

from importlib import import_module

from pvt_kernels.systems.training.system import System

NAMES = ("classification", "retinanet", "mask_rcnn", "detr", "semantic_fpn", "trans2seg")


def load(name: str) -> System:
    """Return the system called `name`, one of NAMES; it is imported only now.

    Raises:
        ValueError: there is no such system.
        ModuleNotFoundError: a package that it is built from is missing.
    """
    if name not in NAMES:
        raise ValueError(f"system: given {name!r}, accepted {', '.join(NAMES)}")
    return import_module(f"pvt_kernels.systems.{name}").SYSTEM
