"""This package's Triton kernels for NVIDIA GPUs of compute capability 8.0 and newer.

CPU tensors run too where TRITON_INTERPRET=1 is set: in Triton's interpreter, for tests. It takes
bfloat16 for integers; there, these inputs are computed in fp32 and the results rounded.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from pvt_kernels.backends.base import (
    AttentionInputs,
    Backend,
    FeedForwardInputs,
    Inputs,
    SpatialReductionInputs,
    dropout_reasons,
    dtype_reasons,
    hidden_dropout_reasons,
)
from pvt_kernels.backends.tensors import allows_tf32

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256
MAX_FP32_HEAD_DIM = 128
# a block normalises whole rows in registers
MAX_CHANNELS = 2048
MIN_CAPABILITY = (8, 0)


class _Modules(dict):
    """Imported at the first use, since triton need not be installed."""

    def __missing__(self, op: str) -> ModuleType:
        self[op] = import_module(f"pvt_kernels.backends.triton.{op}")
        return self[op]


def _reasons(inputs: Inputs) -> list[str]:
    missing = [] if _is_installed() else ["the package triton is not installed"]
    return [*missing, *_device_reasons(inputs.device), *dtype_reasons(inputs.dtype, DTYPES)]


def _attention_reasons(inputs: AttentionInputs) -> list[str]:
    reasons = _reasons(inputs)
    if inputs.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim is {inputs.head_dim}, above {MAX_HEAD_DIM}")
    reasons += dropout_reasons(inputs)
    if _overflows_registers(inputs):
        reasons.append(
            f"head_dim is {inputs.head_dim} in float32, above {MAX_FP32_HEAD_DIM}, and "
            "torch.backends.cuda.matmul.allow_tf32 is not set"
        )
    return reasons


def _spatial_reduction_reasons(inputs: SpatialReductionInputs) -> list[str]:
    reasons = _reasons(inputs)
    if inputs.channels > MAX_CHANNELS:
        reasons.append(f"there are {inputs.channels} channels, above {MAX_CHANNELS}")
    return reasons


def _feed_forward_reasons(inputs: FeedForwardInputs) -> list[str]:
    return [*_reasons(inputs), *hidden_dropout_reasons(inputs)]


def _overflows_registers(inputs: AttentionInputs) -> bool:
    """Without tensor cores Triton keeps a product's factors in registers."""
    wide = inputs.dtype == torch.float32 and inputs.head_dim > MAX_FP32_HEAD_DIM
    return wide and inputs.device.type == "cuda" and not allows_tf32()


def _device_reasons(device: torch.device) -> list[str]:
    if os.environ.get("TRITON_INTERPRET") == "1":
        on_cpu = device.type == "cpu"
        return [] if on_cpu else [f"TRITON_INTERPRET=1 is for CPU tensors, the device is {device}"]
    if device.type == "cpu":
        return ["the device is cpu, and TRITON_INTERPRET=1 is not set"]
    if device.type != "cuda":
        return [f"the device is {device}"]
    if torch.version.cuda is None:
        return ["this PyTorch is not built for NVIDIA GPUs"]
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        given, least = (".".join(map(str, c)) for c in (capability, MIN_CAPABILITY))
        return [f"the GPU's compute capability is {given}, below {least}"]
    return []


@lru_cache
def _is_installed() -> bool:
    return find_spec("triton") is not None


BACKEND = Backend(
    "triton",
    modules=_Modules(),
    reasons={
        "attention": _attention_reasons,
        "multi_head_attention": _attention_reasons,
        "spatial_reduction": _spatial_reduction_reasons,
        "feed_forward": _feed_forward_reasons,
    },
    whole_layer=True,
)
