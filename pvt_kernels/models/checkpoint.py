"""Loading published checkpoints."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights in the file `path` into `model`, which must match them key by key.

    The file holds a state_dict, bare or under "model" (as the original PVT code saves it) or
    "state_dict". It is read with weights_only=True, so that it cannot run code.

    Raises:
        RuntimeError: keys or shapes differ (`torch.nn.Module.load_state_dict` lists them).
    """
    model.load_state_dict(unwrap(torch.load(path, map_location="cpu", weights_only=True)))


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state_dict in a checkpoint's content: bare, or under "model" or "state_dict"."""
    for wrapper in ("model", "state_dict"):
        if wrapper in checkpoint:
            return checkpoint[wrapper]
    return checkpoint
