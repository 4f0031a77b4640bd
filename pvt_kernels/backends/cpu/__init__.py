"""This package's C++ kernels for CPUs."""

from __future__ import annotations

import torch

from pvt_kernels._C import cpu as kernels
from pvt_kernels.backends.base import (
    AttentionInputs,
    Backend,
    FeedForwardInputs,
    Inputs,
    dropout_reasons,
    dtype_reasons,
    hidden_dropout_reasons,
)
from pvt_kernels.backends.cpu import (
    attention,
    feed_forward,
    multi_head_attention,
    spatial_reduction,
    sr_attention,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


def _reasons(inputs: Inputs) -> list[str]:
    device = [] if inputs.device.type == "cpu" else [f"the device is {inputs.device}"]
    return [*device, *dtype_reasons(inputs.dtype, DTYPES)]


def _attention_reasons(inputs: AttentionInputs) -> list[str]:
    reasons = _reasons(inputs)
    if inputs.head_dim % 8 != 0 or inputs.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim is {inputs.head_dim}, no multiple of 8 up to {MAX_HEAD_DIM}")
    return [*reasons, *dropout_reasons(inputs)]


def _feed_forward_reasons(inputs: FeedForwardInputs) -> list[str]:
    return [*_reasons(inputs), *hidden_dropout_reasons(inputs)]


def _note(inputs: Inputs) -> str:
    return f"its kernels for {kernels.capability()}"


BACKEND = Backend(
    "cpu",
    modules={
        "attention": attention,
        "multi_head_attention": multi_head_attention,
        "spatial_reduction": spatial_reduction,
        "sr_attention": sr_attention,
        "feed_forward": feed_forward,
    },
    reasons={
        "attention": _attention_reasons,
        "multi_head_attention": _attention_reasons,
        "spatial_reduction": _reasons,
        "feed_forward": _feed_forward_reasons,
    },
    whole_layer=True,
    note=_note,
)
