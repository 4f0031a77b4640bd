"""Which samples each process reads, in which order, augmented by which seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.data

from pvt_kernels.systems.training import seeding
from pvt_kernels.systems.training.recipe import Recipe
from pvt_kernels.systems.training.system import Dataset

# a sample's place in the dataset, and the seed of its augmentation
Key = tuple[int, int]


@dataclass(frozen=True)
class TrainOrder:
    """A DataLoader's batch_sampler: the micro-batches of one process, from a step to the end.

    An epoch is a permutation of the dataset, in which each image comes `repeats` times; batch by
    batch it is dealt out to the pieces, which are the processes' micro-batches: piece k of n takes
    every n-th sample from the k-th on. So a step is the same on any number of processes, and
    copies of an image land in different pieces.

    Attributes:
        samples: in the dataset.
        batch_size: of all processes.
        pieces: into which a batch falls.
        own: the pieces of this process.
        steps: the optimizer steps to make.
        repeats: copies of each image.
        seed: the run's.
    """

    samples: int
    batch_size: int
    pieces: int
    own: range
    steps: range
    repeats: int
    seed: int

    def __len__(self) -> int:
        return len(self.steps) * len(self.own)

    def __iter__(self) -> Iterator[list[Key]]:
        shuffled, permutation = -1, []
        for step in self.steps:
            epoch, batch = divmod(step, self.samples // self.batch_size)
            if epoch != shuffled:
                generator = torch.Generator().manual_seed(
                    seeding.derive(self.seed, seeding.ORDER, epoch)
                )
                permutation = torch.randperm(self.samples, generator=generator).tolist()
                shuffled = epoch
            first = batch * self.batch_size
            for piece in self.own:
                positions = range(first + piece, first + self.batch_size, self.pieces)
                yield [
                    (
                        permutation[position // self.repeats],
                        seeding.derive(self.seed, seeding.SAMPLE, epoch, position),
                    )
                    for position in positions
                ]


def train_order(
    recipe: Recipe, samples: int, rank: int, world: int, start: int, seed: int
) -> TrainOrder:
    """The order for one process of a run, from step `start` on.

    Raises:
        ValueError: the batch is larger than the dataset, or can't be shared evenly.
    """
    size = recipe.batch_size
    if size > samples:
        raise ValueError(f"batch_size: given {size}, but the dataset has {samples} samples")
    if size % world:
        raise ValueError(f"batch_size: given {size}, accepted multiples of {world} processes")
    share = size // world
    accumulate = -(-share // recipe.micro_batch)
    while share % accumulate:
        accumulate += 1
    return TrainOrder(
        samples=samples,
        batch_size=size,
        pieces=world * accumulate,
        own=range(rank * accumulate, (rank + 1) * accumulate),
        steps=range(start, recipe.total_steps(samples // size)),
        repeats=recipe.repeats,
        seed=seed,
    )


class Seeded(torch.utils.data.Dataset):
    """A dataset by keys: augmentation draws its random numbers from the key's seed."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        index, seed = key
        with seeding.seeded_on_cpu(seed):
            return self.dataset[index]
