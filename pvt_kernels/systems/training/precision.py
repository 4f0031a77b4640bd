"""fp32, bf16 and fp16 arithmetic."""

from __future__ import annotations

import contextlib

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(name: str, device: torch.device) -> None:
    """See that the device computes in a precision.

    Raises:
        ValueError: a GPU older than compute capability 8.0 has no bf16.
    """
    if name == "bf16" and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise ValueError(
                f"precision: given 'bf16', which compute capability {major}.{minor} lacks; "
                "accepted fp16 and fp32"
            )


def autocast(name: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The context of a forward pass; parameters stay in fp32."""
    return torch.autocast(device.type, PRECISIONS[name], enabled=name != "fp32")


def loss_scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Keeps fp16 gradients from vanishing; without effect in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=name == "fp16")
