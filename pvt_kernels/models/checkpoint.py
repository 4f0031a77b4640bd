"""Loading published checkpoints."""

import os

import torch
from torch import nn


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights in the file `path` into `model`, which must match them key by key.

    The file holds a state_dict, bare or under "model" (as the original PVT code saves it) or
    "state_dict". It is read with weights_only=True, so that it cannot run code.

    Raises:
        RuntimeError: keys or shapes differ (`torch.nn.Module.load_state_dict` lists them).
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("model", "state_dict"):
        if wrapper in checkpoint:
            checkpoint = checkpoint[wrapper]
            break
    model.load_state_dict(checkpoint)
