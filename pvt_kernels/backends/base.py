"""What a backend is, and the facts about a call that it decides by.

torch.compile makes the choice once, when it traces a model, so the facts are those that stay the
same when the image size changes: device, dtype and channel counts, never batch, N or M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import ClassVar

import torch


@dataclass(frozen=True)
class AttentionInputs:
    op: ClassVar[str] = "attention"
    device: torch.device
    dtype: torch.dtype
    head_dim: int
    dropout: bool


@dataclass(frozen=True)
class SpatialReductionInputs:
    op: ClassVar[str] = "spatial_reduction"
    device: torch.device
    dtype: torch.dtype
    channels: int
    sr_ratio: int


Inputs = AttentionInputs | SpatialReductionInputs


def describe(inputs: Inputs) -> str:
    """`attention(device=cpu, dtype=torch.float32, head_dim=64, dropout=False)`."""
    facts = ", ".join(f"{f.name}={getattr(inputs, f.name)}" for f in fields(inputs))
    return f"{inputs.op}({facts})"


class Backend:
    """One implementation of the ops.

    `implementations` maps an op's name to the module in the backend's folder that computes it. The
    module of a `composite` backend consists of PyTorch's own differentiable functions and has one
    function, named after the op. Any other module has `forward` and `backward`, which the
    operators in torch.ops.pvt_kernels call with checked inputs; the op's module says what they
    take and return.
    """

    name: ClassVar[str]
    composite: ClassVar[bool] = False
    implementations: Mapping[str, ModuleType]

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        """Every reason why this backend can't run such a call; empty if it can."""
        raise NotImplementedError
