"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: its number, of `world`; rank 0 writes and prints.
        world: how many there are.
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, for as long as the context lasts.

    Args:
        device: "cpu" or "cuda"; on "cuda" each process takes the GPU of its local rank.

    Raises:
        ValueError: there is no such GPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU: PyTorch sees "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
        own = torch.device("cuda", local_rank)
    else:
        own = torch.device(device)
    if "RANK" not in os.environ:
        yield Processes(0, 1, own)
        return
    # gloo carries what processes agree upon through CPU tensors, without waiting for a GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()


def largest_of_processes(number: int) -> int:
    """The largest of all processes' numbers; all of them must ask."""
    if not dist.is_initialized():
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def mean_of_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes, each of which must bring a tensor of the same shape."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


def compute_on_main(own: list[T], compute: Callable[[list[T]], R]) -> R:
    """`compute` of all processes' lists, one after the other: the main process runs it for all."""
    if not dist.is_initialized():
        return compute(own)
    main = dist.get_rank() == 0
    lists = [None] * dist.get_world_size() if main else None
    dist.gather_object(own, lists)
    result = [compute(list(chain.from_iterable(lists))) if main else None]
    dist.broadcast_object_list(result)
    return result[0]
