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


def has_aligned_rows(tensor: Tensor, elements: int) -> bool:
    """Whether channels are adjacent, the address is a multiple of 16 bytes, and every other stride
    one of `elements`."""
    return tensor.data_ptr() % 16 == 0 and has_aligned_strides(tensor, elements)


def has_aligned_strides(tensor: Tensor, elements: int) -> bool:
    """The same, wherever the tensor is."""
    rows = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    # a dimension of size 1 may have any stride
    return tensor.stride(-1) == 1 and all(
        stride % elements == 0 for size, stride in rows if size > 1
    )


def aligned_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself where it is contiguous from a multiple of 16 bytes on, else a copy."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def current_stream(device: int | None) -> int:
    """The address of the stream that PyTorch works on, on the GPU of that index; 0 on the CPU."""
    return 0 if device is None else torch._C._cuda_getCurrentRawStream(device)


def memory_format(weight: Tensor) -> torch.memory_format:
    """Of a convolution's weight, and so of its gradient: channels_last where it is no other."""
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def dtype_name(tensor: Tensor) -> str:
    """ "float32", "bfloat16" or "float16", as the kernels call it."""
    return _DTYPE_NAMES[tensor.dtype]


def allows_tf32() -> bool:
    """Whether PyTorch's own products of fp32 matrices on GPUs may round their factors to TF32."""
    matmul = torch.backends.cuda.matmul
    # where PyTorch has the newer switch, reading the older one may raise
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return bool(matmul.allow_tf32)


def records_gradients(*tensors: Tensor | None) -> bool:
    """Whether gradients of what is computed from these are recorded."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
