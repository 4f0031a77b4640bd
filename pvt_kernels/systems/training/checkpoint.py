"""Checkpoints of runs: written whole or not at all, read without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
        ValueError: it is no checkpoint of PyTorch's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"missing checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever comes up
        raise ValueError(f"broken checkpoint {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"broken checkpoint {path}: holds a {type(content).__name__}")
    return content


def is_run(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is a run's, rather than weights alone."""
    return content.keys() >= KEYS


def load_backbone(model: nn.Module, path: Path) -> list[str]:
    """Load the weights of a classifier in `path` into the PVT of a system's model.

    Returns:
        The parameters that were left as they are: the head's, where its classes are others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this backbone; says which keys or shapes differ.
    """
    weights = dict(unwrap(load(path)))
    backbone = backbone_of(model)
    own = backbone.state_dict()
    left = []
    if not backbone.features_only:
        heads = ("head.weight", "head.bias")
        left = [k for k in heads if k in weights and weights[k].shape != own[k].shape]
        weights.update((key, own[key]) for key in left)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the backbone: {error}") from error
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
