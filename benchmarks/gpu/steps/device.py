"""What the steps on the device share: sizes, and calls of which one may fail."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend

from steps.record import REHEARSE, record, seconds_left, short

CUDA = not REHEARSE
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
SIZE, BATCH = ((800, 1216), 2) if CUDA else ((64, 64), 1)
# of PyTorch's fused attention, those that fit whatever the size
KINDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
LEAST_SECONDS = 4
MOST_RESTARTS = 3

# (name, what to do)
Part = tuple[str, Callable[[], None]]


class DeviceLost(Exception):
    """The device answers no more: only a new process can go on."""


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


@contextmanager
def guarded(**fields: object) -> Iterator[None]:
    """An error within becomes a record, unless the device is lost with it."""
    try:
        yield
    except DeviceLost:
        raise
    except Exception as error:
        record("failed", error=short(error), **fields)
        error.__traceback__ = None
        if _is_lost():
            raise DeviceLost(short(error)) from None
        release()


def release() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def run_parts(parts: Sequence[Part]) -> None:
    """Every part, until the time is up; where the device is lost, on in a new process."""
    # a capture of a graph collects garbage: not what the imports left
    gc.collect()
    gc.freeze()
    first = int(os.environ.get("GPU_RUN_FIRST", "0"))
    restarts = int(os.environ.get("GPU_RUN_RESTARTS", "0"))
    for index, (name, call) in enumerate(parts):
        if index < first:
            continue
        if seconds_left() < LEAST_SECONDS:
            record("dropped", first=name, parts=len(parts) - index)
            return
        try:
            with guarded(part=name):
                call()
        except DeviceLost as error:
            record("device lost", part=name, error=str(error))
            if restarts >= MOST_RESTARTS:
                return
            os.environ |= {"GPU_RUN_FIRST": str(index + 1), "GPU_RUN_RESTARTS": str(restarts + 1)}
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_lost() -> bool:
    try:
        synchronize()
        return (torch.ones(1, device=DEVICE) + 1).item() != 2
    except Exception:
        return True
