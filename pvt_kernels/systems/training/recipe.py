"""How a system is trained, as data."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pvt_kernels.systems.training.fields import Count, Dropout, Field, NotNegative, Positive
from pvt_kernels.systems.training.schedules import Schedule

R = TypeVar("R", bound="Recipe")

# how long a run is, is given by one of the two
_OTHER_LENGTH = {"epochs": "iterations", "iterations": "epochs"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all systems' recipes have; a system adds its own fields in a subclass.

    Fields with a kind of training.fields are checked, and `override` replaces them.

    Attributes:
        name: what the command line calls it.
        summary: one line on where it comes from.
        model: the backbone where none is named, one of `pvt_kernels.models.names()`.
        models: the backbones for which it is the default; empty for every one.
        batch_size: images in a step, over all processes.
        micro_batch: images that a process takes at once, at most. Where the batch's share of a
            process is larger, gradients accumulate, so that the step is the same on any number of
            GPUs.
        epochs, iterations: how long, one of the two. An epoch leaves out an incomplete batch.
        learning_rate: AdamW's, before the schedule's factor.
        weight_decay: AdamW's; norms, biases and positions have none.
        schedule: of the learning rate.
        clip_norm: the norm to which larger gradients are scaled down.
        backbone_rate: the factor of the backbone's learning rate.
        drop_path_rate: the backbone's stochastic depth.
        repeats: differently augmented copies of an image in a batch (repeated augmentation,
            Hoffer et al., CVPR 2020); an epoch then sees a part of the images.
        evaluate_every: epochs or iterations, as the length is given in.

    Raises:
        ValueError: a field is out of range.
    """

    name: str
    summary: str
    model: str = "pvt_small"
    models: tuple[str, ...] = ()
    batch_size: Count
    micro_batch: Count
    epochs: Count | None = None
    iterations: Count | None = None
    learning_rate: Positive
    weight_decay: NotNegative
    schedule: Schedule
    clip_norm: Positive | None = None
    backbone_rate: NotNegative = 1.0
    drop_path_rate: Dropout = 0.1
    repeats: Count = 1
    evaluate_every: Count = 1

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError(
                f"recipe {self.name}: accepted one of epochs and iterations, given "
                f"{self.epochs} and {self.iterations}"
            )
        for name, field in fields(type(self)).items():
            value = getattr(self, name)
            if not (field.takes(value) or (value is None and name in _OTHER_LENGTH)):
                raise ValueError(f"{name}: given {value!r}, accepted {field.words}")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.iterations or self.epochs * steps_per_epoch

    def evaluation_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps between evaluations."""
        return self.evaluate_every * (steps_per_epoch if self.iterations is None else 1)


def fields(recipe: type[Recipe]) -> dict[str, Field]:
    """The fields that `override` replaces, by name."""
    hints = typing.get_type_hints(recipe, include_extras=True)
    found = {
        field.name: Field(hints[field.name])
        for field in dataclasses.fields(recipe)
        if Field.annotated(hints[field.name])
    }
    for name in _OTHER_LENGTH:  # None stands there where the other is given
        found[name].optional = False
    return found


def override(recipe: R, settings: Mapping[str, str]) -> R:
    """Replace fields by values written as in Python, such as {"epochs": "10"}.

    Of epochs and iterations the last one named holds, and takes the other away; where the unit
    changes so and evaluate_every is not given, the end alone is evaluated.

    Raises:
        ValueError: there is no such field, or it does not take the value.
    """
    changeable = fields(type(recipe))
    values: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in changeable:
            raise ValueError(
                f"{name}: recipe {recipe.name} has no such field, accepted {', '.join(changeable)}"
            )
        field = changeable[name]
        value = field.parse(text)
        if not field.takes(value):
            raise ValueError(f"{name}: given {text!r}, accepted {field.words}")
        values[name] = value
        if name in _OTHER_LENGTH:
            values[_OTHER_LENGTH[name]] = None
            if getattr(recipe, name) is None:
                values.setdefault("evaluate_every", value)
    return dataclasses.replace(recipe, **values)


def find(recipes: Sequence[R], name: str | None, model: str | None) -> R:
    """The recipe called `name`, or the default for a backbone.

    Raises:
        ValueError: there is no such recipe.
    """
    if name is None:
        return next(r for r in recipes if model is None or not r.models or model in r.models)
    for recipe in recipes:
        if recipe.name == name:
            return recipe
    raise ValueError(
        f"recipe: given {name!r}, accepted {', '.join(recipe.name for recipe in recipes)}"
    )
