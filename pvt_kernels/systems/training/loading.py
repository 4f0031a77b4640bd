"""Batches from datasets, on the device."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

# What asks a run to stop, which its workers must not take as meant for them. Where a process can't
# ask who sent a signal, as on macOS, SIGTERM ends them all the same.
_TELLS_SENDERS = hasattr(signal, "sigtimedwait")
_SIGNALS = (signal.SIGINT, signal.SIGTERM) if _TELLS_SENDERS else (signal.SIGINT,)


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
        worker_init_fn=_leave_signals_to_run,
        **order,
    )
    try:
        # workers are blocked from their first moment on: they inherit it
        with _blocked_signals():
            iterator = iter(loader)
        yield from iterator
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


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back from this thread, and give them to it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_run(_worker: int) -> None:
    """Make a worker deaf to Ctrl-C and to a SIGTERM that does not come from the run.

    Terminals, schedulers and torchrun signal whole process groups, but the run needs its workers
    until its checkpoint is written. It ends them itself: by a message, and a worker that is busy
    by SIGTERM.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if _TELLS_SENDERS:
        run = multiprocessing.parent_process().pid
        threading.Thread(target=_end_with, args=(run, os.getppid()), daemon=True).start()


def _end_with(run: int, parent: int) -> None:
    """End this process when process `run` signals it, and within a second of its parent's end."""
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], 1)
        if received and received.si_pid == run:
            break
    os._exit(0)
