"""This package's CUDA C++ kernels for NVIDIA GPUs, from the V100 on."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from pvt_kernels._C import build_info, cuda_device
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
from pvt_kernels.backends.cuda import attention, feed_forward, spatial_reduction, sr_attention

if TYPE_CHECKING:
    from pvt_kernels._C import CudaDevice

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 128
MAX_CHANNELS = 4096


def _reasons(inputs: Inputs) -> list[str]:
    reasons = []
    missing = build_info()["cuda_missing"]
    if missing:
        reasons.append(f"pvt_kernels was built without CUDA: {missing}")
    # ROCm builds of PyTorch call their devices "cuda" too
    if inputs.device.type != "cuda" or torch.version.cuda is None:
        reasons.append(f"the device is {inputs.device}, not an NVIDIA GPU")
    elif not missing:
        reasons += _device_reasons(inputs)
    return [*reasons, *dtype_reasons(inputs.dtype, DTYPES)]


def _attention_reasons(inputs: AttentionInputs) -> list[str]:
    sizes = _size_reasons("head_dim", inputs.head_dim, MAX_HEAD_DIM)
    return [*_reasons(inputs), *sizes, *dropout_reasons(inputs)]


def _spatial_reduction_reasons(inputs: SpatialReductionInputs) -> list[str]:
    sizes = _size_reasons("the number of channels", inputs.channels, MAX_CHANNELS)
    return [*_reasons(inputs), *sizes]


def _feed_forward_reasons(inputs: FeedForwardInputs) -> list[str]:
    reasons = _reasons(inputs)
    if inputs.hidden % 8 != 0:
        reasons.append(f"the number of hidden channels is {inputs.hidden}, no multiple of 8")
    return [*reasons, *hidden_dropout_reasons(inputs)]


def _size_reasons(name: str, size: int, largest: int) -> list[str]:
    if size % 8 == 0 and size <= largest:
        return []
    return [f"{name} is {size}, no multiple of 8 up to {largest}"]


def _device_reasons(inputs: Inputs) -> list[str]:
    index = inputs.device.index
    index = torch.cuda.current_device() if index is None else index
    try:
        facts = _inspect(index)
    except RuntimeError as error:
        return [str(error)]
    major, minor = facts["compute_capability"]
    gpu = f"the {facts['name']} has compute capability {major}.{minor}"
    rebuild = f"PVT_KERNELS_CUDA_ARCHS={major}{minor} pip install ."
    if (major, minor) < (7, 0):
        return [f"{gpu}, and the kernels need 7.0 or newer"]
    if facts["code"] is None:
        archs = ", ".join(build_info()["cuda_archs"])
        toolkit = "CUDA 12.x or older" if (major, minor) < (7, 5) else "a CUDA toolkit for it"
        return [
            f"{gpu}, and runs none of the code in this build ({archs}): install {toolkit} and "
            f"build again with {rebuild} ({facts['code_missing']})"
        ]
    treated_as = build_info()["cuda_treat_as_arch"]
    if inputs.dtype == torch.bfloat16 and treated_as is not None:
        return [
            f"this build treats every GPU as one of compute capability {treated_as / 10} "
            f"(PVT_KERNELS_TREAT_AS_ARCH={treated_as}), and bfloat16 needs 8.0 or newer: use "
            "float16 or float32"
        ]
    if inputs.dtype == torch.bfloat16 and int(facts["code"].split("_")[1]) < 80:
        if major < 8:
            return [f"{gpu}, and bfloat16 needs 8.0 or newer: use float16 or float32"]
        return [
            f"{gpu}, but runs this build's code for {facts['code']}, and bfloat16 needs that for "
            f"8.0 or newer: build again with {rebuild}"
        ]
    return []


@lru_cache
def _inspect(index: int) -> CudaDevice:
    return cuda_device(index)


BACKEND = Backend(
    "cuda",
    modules={
        "attention": attention,
        "spatial_reduction": spatial_reduction,
        "sr_attention": sr_attention,
        "feed_forward": feed_forward,
    },
    reasons={
        "attention": _attention_reasons,
        "spatial_reduction": _spatial_reduction_reasons,
        "feed_forward": _feed_forward_reasons,
    },
    whole_layer=True,
)
