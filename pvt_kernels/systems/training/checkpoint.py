"""Checkpoints of runs: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvt_kernels.models.checkpoint import unwrap
from pvt_kernels.systems.training.system import backbone_of

# what a run's checkpoint has; "model" is where models.load_checkpoint looks for weights as well
KEYS = frozenset(
    {
        "system",
        "recipe",
        "settings",
        "backbone",
        "classes",
        "seed",
        "step",
        "model",
        "optimizer",
        "scaler",
    }
)
_ACCEPTED = "what torch.save wrote of weights, or of a dict with them as model or state_dict"
# of what an error lists, the rest of which it counts
_LISTED = 3


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` to `path`, which holds the old or the new content at any moment.

    It is written to a file beside it and on the disk before it takes the name; a failed or killed
    attempt leaves `path` as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too, outlives a power cut
        finally:
            os.close(folder)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of PyTorch's, or holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"missing checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever comes up
        reason = _reason(path, error)
        raise ValueError(f"broken checkpoint {path}: {reason}; accepted {_ACCEPTED}") from error
    weights = unwrap(content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} holds no weights, accepted {_ACCEPTED}")
    return content


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a file that torch.load refuses, in fewer words than its own."""
    if not path.stat().st_size:
        return "the file is empty"
    found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if found:
        return f"it holds a {found[1]}, which is not read, since that could run code"
    return "it is cut short or something else"


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Load weights that must match a model key by key.

    Args:
        name: of the model, in errors.
        path: of the checkpoint, in errors.

    Raises:
        ValueError: keys or shapes differ; says how many and which first.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit: {_misfit(model, weights)}; accepted weights of {name}"
        ) from error


def _misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Which keys and shapes differ; leaves the model with what does fit."""
    own = model.state_dict()
    reshaped = {
        key: f"{key} is {tuple(value.shape)}, accepted {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    }
    fitting = {key: value for key, value in weights.items() if key not in reshaped}
    missing, unknown = model.load_state_dict(fitting, strict=False)
    missing = [key for key in missing if key not in reshaped]
    parts = (
        (f"{len(missing)} of {len(own)} keys are missing", missing),
        (f"{len(unknown)} are unknown", unknown),
        (f"{len(reshaped)} have another shape", reshaped.values()),
    )
    return "; ".join(f"{what} ({listed(names)})" for what, names in parts if names)


def is_run(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is a run's, rather than weights alone."""
    return content.keys() >= KEYS


def load_backbone(model: nn.Module, name: str, path: Path) -> list[str]:
    """Load the weights of a classifier in `path` into the PVT of a system's model.

    Args:
        name: of the PVT, in errors.

    Returns:
        The parameters that were left as they are: the head's, where its classes are others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this backbone; says which keys or shapes differ.
    """
    content = load(path)
    if is_run(content) and (content["system"], content["backbone"]) != ("classification", name):
        raise ValueError(
            f"{path} is of {content['system']} on {content['backbone']}, accepted classification "
            f"on {name}"
        )
    weights = dict(unwrap(content))
    backbone = backbone_of(model)
    own = backbone.state_dict()
    left = []
    if not backbone.features_only:
        heads = ("head.weight", "head.bias")
        left = [k for k in heads if k in weights and weights[k].shape != own[k].shape]
        weights.update((key, own[key]) for key in left)
    load_weights(backbone, weights, name, path)
    return left


def check_same_run(saved: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """See that a checkpoint is of the run that is to be resumed.

    Raises:
        ValueError: it is not; names what differs.
    """
    if not is_run(saved):
        raise ValueError(f"{path} holds weights alone: it can't be resumed")
    for key, value in identity.items():
        if saved[key] != value:
            raise ValueError(f"{path} is of another run: {key} {saved[key]!r}, given {value!r}")
