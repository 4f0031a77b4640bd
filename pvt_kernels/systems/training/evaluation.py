"""Evaluates a system's model, in one process or many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Subset

from pvt_kernels.systems.training import precision
from pvt_kernels.systems.training.distributed import Processes
from pvt_kernels.systems.training.interruption import Interruption
from pvt_kernels.systems.training.loading import batches, to_device
from pvt_kernels.systems.training.recipe import Recipe
from pvt_kernels.systems.training.system import Dataset, System


@dataclass(frozen=True)
class Inference:
    """How a system's model is run: its recipe, a name of precision.PRECISIONS, and workers."""

    system: System
    recipe: Recipe
    precision: str = "fp32"
    workers: int = 0


@torch.no_grad()
def evaluate(
    inference: Inference,
    model: nn.Module,
    dataset: Dataset,
    own: Processes,
    asked: Interruption | None = None,
) -> dict[str, float] | None:
    """The system's figures on a dataset, which the processes share; None after a signal."""
    system, recipe = inference.system, inference.recipe
    evaluator = system.evaluator(dataset, own.device, recipe)
    share = Subset(dataset, range(own.rank, len(dataset), own.world))
    model.eval()
    data = batches(
        share, system.collate, inference.workers, own.device, batch_size=recipe.micro_batch
    )
    for batch in data:
        if asked and asked.signal is not None:
            break
        with precision.autocast(inference.precision, own.device):
            evaluator.update(model, to_device(batch, own.device))
    # the processes compute figures together, or not at all
    if asked and asked.agreed() is not None:
        return None
    return evaluator.compute()
