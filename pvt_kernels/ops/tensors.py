"""What several backends need to know of tensors before their kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def with_adjacent_channels(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension has stride 1, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def dtype_name(tensor: Tensor) -> str:
    """ "float32", "bfloat16" or "float16", as the kernels call it."""
    return _DTYPE_NAMES[tensor.dtype]


def allows_tf32() -> bool:
    """Whether PyTorch's own products of fp32 matrices on GPUs may round their factors to TF32."""
    matmul = torch.backends.cuda.matmul
    # where PyTorch has the newer switch, reading the older one may raise
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
