"""How a system is trained, as data."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pvt_kernels.systems.training.schedules import Schedule

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all systems' recipes have; a system adds its own fields in a subclass.

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
    batch_size: int
    micro_batch: int
    epochs: int | None = None
    iterations: int | None = None
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    clip_norm: float | None = None
    backbone_rate: float = 1.0
    drop_path_rate: float = 0.1
    repeats: int = 1
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError(
                f"recipe {self.name}: one of epochs and iterations must be given, got "
                f"{self.epochs} and {self.iterations}"
            )
        for field in (
            "batch_size",
            "micro_batch",
            "epochs",
            "iterations",
            "repeats",
            "evaluate_every",
            "learning_rate",
            "clip_norm",
        ):
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise ValueError(f"recipe {self.name}: {field} must be positive, got {value}")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.iterations or self.epochs * steps_per_epoch

    def evaluation_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps between evaluations."""
        return self.evaluate_every * (steps_per_epoch if self.iterations is None else 1)


def override(recipe: R, settings: Mapping[str, str]) -> R:
    """Replace fields by values written as in Python, such as {"epochs": "10"}.

    Of epochs and iterations the last one named holds, and takes the other away; where the unit
    changes so and evaluate_every is not given, the end alone is evaluated.

    Raises:
        ValueError: there is no such field, or the value is not of its type.
    """
    hints = typing.get_type_hints(type(recipe))
    changeable = [
        field.name
        for field in dataclasses.fields(recipe)
        if field.name not in ("name", "summary", "models")
        and not dataclasses.is_dataclass(getattr(recipe, field.name))
    ]
    values: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in changeable:
            raise ValueError(
                f"recipe {recipe.name} has no setting {name!r}, accepted {', '.join(changeable)}"
            )
        values[name] = _parse(recipe.name, name, text, hints[name])
        other = {"epochs": "iterations", "iterations": "epochs"}.get(name)
        if other:
            values[other] = None
            if getattr(recipe, name) is None:
                values.setdefault("evaluate_every", values[name])
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


def _parse(recipe: str, name: str, text: str, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if str in kinds:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in [typing.get_origin(kind) or kind for kind in kinds]:
        accepted = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds)
        raise ValueError(f"recipe {recipe}: {name}: given {text!r}, accepted {accepted}")
    return value
