"""What the engine needs of a system, such as a classifier or a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from pvt_kernels import models
from pvt_kernels.models.pyramid import Pyramid
from pvt_kernels.systems.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image


class Dataset(Protocol):
    """A map-style dataset with the names of its classes."""

    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Evaluator(Protocol):
    """Compares a model's answers with the truth, batch by batch."""

    def update(self, model: nn.Module, batch: Any) -> None:
        """Run the model, in evaluation mode, on one collated batch on its device."""
        ...

    def compute(self) -> dict[str, float]:
        """The figures over every process's batches, the main one first; all processes call it."""
        ...


@dataclass(frozen=True)
class Answer:
    """What a model finds in an image: in lines of text, and drawn on the image."""

    lines: list[str]
    picture: Image.Image


@dataclass(frozen=True)
class System:
    """One of the paper's systems: everything but the loop.

    The functions must draw every random number from PyTorch's, NumPy's or Python's global
    generators: the engine seeds them by sample (`dataset`, `collate`) and by step (`loss`), which
    is what makes a resumed run the same as an uninterrupted one.

    Attributes:
        name: what the command line calls it.
        recipes: the paper's first.
        dataset: (root, recipe, train) -> Dataset, augmented for training, prepared for
            evaluation.
        collate: samples -> batch; tensors in it, also in lists, tuples and dicts, move to the
            device.
        build: (backbone name, classes, recipe) -> model with one `models.pyramid.Pyramid` in it.
        loss: (model, batch, recipe) -> losses by name, of which the sum is minimised. It calls the
            model once: it may be wrapped in DistributedDataParallel.
        evaluator: (dataset, device, recipe) -> Evaluator.
        answer: (model, image, classes, recipe) -> the model's Answer; the model is in evaluation
            mode.
    """

    name: str
    recipes: tuple[Recipe, ...]
    dataset: Callable[[Path, Any, bool], Dataset]
    collate: Callable[[list[Any]], Any]
    build: Callable[[str, Sequence[str], Any], nn.Module]
    loss: Callable[[nn.Module, Any, Any], dict[str, Tensor]]
    evaluator: Callable[[Dataset, torch.device, Any], Evaluator]
    answer: Callable[[nn.Module, Image.Image, Sequence[str], Any], Answer]


def create_backbone(name: str, recipe: Recipe) -> Pyramid:
    """The PVT called `name`, as a feature pyramid with the recipe's stochastic depth."""
    return models.create(name, features_only=True, drop_path_rate=recipe.drop_path_rate)


def backbone_of(model: nn.Module) -> Pyramid:
    """The PVT in a system's model, or the model itself.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [module for module in model.modules() if isinstance(module, Pyramid)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} must have one PVT backbone, has {len(found)}")
    return found[0]
