"""This package's C++ kernels for CPUs."""

from typing import ClassVar

import torch

from pvt_kernels.backends.base import AttentionInputs, Backend, Inputs
from pvt_kernels.backends.cpu import attention, multi_head_attention, spatial_reduction

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


class CpuBackend(Backend):
    name = "cpu"
    implementations: ClassVar = {
        "attention": attention,
        "multi_head_attention": multi_head_attention,
        "spatial_reduction": spatial_reduction,
    }

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        reasons = []
        if inputs.device.type != "cpu":
            reasons.append(f"the device is {inputs.device}")
        if inputs.dtype not in DTYPES:
            names = ", ".join(str(dtype) for dtype in DTYPES)
            reasons.append(f"the dtype is {inputs.dtype}, not one of {names}")
        if isinstance(inputs, AttentionInputs):
            if inputs.head_dim % 8 != 0 or inputs.head_dim > MAX_HEAD_DIM:
                reasons.append(
                    f"head_dim is {inputs.head_dim}, no multiple of 8 up to {MAX_HEAD_DIM}"
                )
            if inputs.dropout:
                reasons.append("attention dropout is active")
        return reasons
