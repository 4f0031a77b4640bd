"""What a backend is, and the facts about a call that it decides by.

torch.compile makes the choice once, when it traces a model, so the facts are those that stay the
same when the image size changes: device, dtype and channel counts, never batch, N or M.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, ClassVar

import torch


@dataclass(frozen=True)
class AttentionInputs:
    """The facts about a call of `attention`."""

    op: ClassVar[str] = "attention"
    # what a backend without kernels for the op computes, PyTorch's functions around it
    within: ClassVar[str] = op
    device: torch.device
    dtype: torch.dtype
    head_dim: int
    dropout: bool


@dataclass(frozen=True)
class MultiHeadAttentionInputs(AttentionInputs):
    """The facts about a call of `multi_head_attention`."""

    op: ClassVar[str] = "multi_head_attention"
    within: ClassVar[str] = AttentionInputs.op


@dataclass(frozen=True)
class SpatialReductionInputs:
    """The facts about a call of `spatial_reduction`."""

    op: ClassVar[str] = "spatial_reduction"
    within: ClassVar[str] = op
    device: torch.device
    dtype: torch.dtype
    channels: int
    sr_ratio: int


@dataclass(frozen=True)
class FeedForwardInputs:
    """The facts about a call of `feed_forward`.

    `gradients`: whether they are recorded, for which a kernel computes the hidden layer again.
    """

    op: ClassVar[str] = "feed_forward"
    within: ClassVar[str] = op
    device: torch.device
    dtype: torch.dtype
    channels: int
    hidden: int
    convolved: bool
    dropout: bool
    gradients: bool = False


Inputs = AttentionInputs | MultiHeadAttentionInputs | SpatialReductionInputs | FeedForwardInputs


def describe(inputs: Inputs) -> str:
    """`attention(device=cpu, dtype=torch.float32, head_dim=64, dropout=False)`."""
    facts = ", ".join(f"{f.name}={getattr(inputs, f.name)}" for f in fields(inputs))
    return f"{inputs.op}({facts})"


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops: a folder with a module an op.

    Attributes:
        name: of the folder, and what use_backend() takes.
        modules: by an op's name, the module that computes it. That of a `composite` backend
            consists of PyTorch's own differentiable functions and has one function, named after
            the op. Any other has `forward` and `backward`, which the operators in
            torch.ops.pvt_kernels call with checked inputs; the op's module says what they take
            and return.
        reasons: by the name of each op that it has, every reason why it can't run such a call.
        composite: see `modules`.
        whole_layer: whether it also has the module `sr_attention`, where it runs both the
            reduction and the attention of a layer.
        note: what else to know of how it runs such a call, such as by which instructions.
    """

    name: str
    modules: Mapping[str, ModuleType]
    reasons: Mapping[str, Callable[[Any], list[str]]]
    composite: bool = False
    whole_layer: bool = False
    note: Callable[[Any], str] = lambda inputs: ""

    def has(self, op: str) -> bool:
        """Whether it computes an op as one, rather than PyTorch's functions around another op."""
        return op in self.reasons

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        """Every reason why this backend can't run such a call; empty if it can."""
        op = inputs.op if self.has(inputs.op) else inputs.within
        if not self.has(op):
            return [f"it has no kernel for {op} yet"]
        return self.reasons[op](inputs)


def dtype_reasons(dtype: torch.dtype, accepted: Sequence[torch.dtype]) -> list[str]:
    """What several backends say of a dtype that they don't take."""
    if dtype in accepted:
        return []
    return [f"the dtype is {dtype}, not one of {', '.join(map(str, accepted))}"]


def dropout_reasons(inputs: AttentionInputs) -> list[str]:
    """What all but PyTorch's own attention say of dropout of the attention's weights."""
    return ["attention dropout is active"] if inputs.dropout else []


def hidden_dropout_reasons(inputs: FeedForwardInputs) -> list[str]:
    """What all but PyTorch's own feed-forward say of dropout of its hidden layer."""
    return ["dropout of the hidden layer is active"] if inputs.dropout else []
