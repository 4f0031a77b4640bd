"""Checkpoints of runs: written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pvt_kernels.models.checkpoint import Loaded, load, load_weights, unwrap
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


def is_run(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is a run's, rather than weights alone."""
    return content.keys() >= KEYS


def load_backbone(model: nn.Module, name: str, path: Path) -> Loaded:
    """Load the weights of a classifier in `path` into the PVT of a system's model.

    A head for other classes is left out, and the model's stays as it is.

    Args:
        name: of the PVT, in errors.

    Returns:
        What was stripped and left out.

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
    return load_weights(backbone_of(model), unwrap(content), name, path, other_head=True)


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
