"""Batches from datasets, on the device."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def batches(
    dataset: Dataset,
    collate: Callable[[list[Any]], Any],
    workers: int,
    device: torch.device,
    **order: Any,
) -> Iterator[Any]:
    """The batches of a DataLoader; `order` is its batch_sampler or batch_size.

    Raises:
        ValueError, FileNotFoundError: as the dataset does, in a worker too.
    """
    loader = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_parent,
        **order,
    )
    try:
        yield from loader
    except (ValueError, FileNotFoundError) as error:
        # of a worker comes its traceback as text, at whose end is what the dataset said
        _, worker, message = str(error).rpartition(f"\n{type(error).__name__}: ")
        if not worker:
            raise
        raise type(error)(message.strip()) from error


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors in a batch, also in lists, tuples and dicts."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _leave_signals_to_parent(_worker: int) -> None:
    # Ctrl-C reaches the workers as well, which the run needs until its checkpoint is written
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
