"""Learning rates over a run, as factors of the recipe's learning rate.

A factor depends on the step alone, so a resumed run needs no state of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """What a recipe's schedule must have."""

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """What the learning rate of step `step`, counted from 0, is multiplied by."""
        ...


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine over the whole run, as DeiT trains (timm's scheduler).

    The warm-up covers the cosine's beginning rather than delaying it. timm changes the rate once
    an epoch; this does at every step.

    Attributes:
        warmup_epochs: how long the rate rises.
        warmup_factor: where it starts.
        final_factor: where the cosine ends.
    """

    warmup_epochs: float = 5
    warmup_factor: float = 1e-3
    final_factor: float = 1e-2

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See Schedule."""
        epoch = step / steps_per_epoch
        if epoch < self.warmup_epochs:
            return self.warmup_factor + (1 - self.warmup_factor) * epoch / self.warmup_epochs
        cosine = (1 + math.cos(math.pi * step / total_steps)) / 2
        return self.final_factor + (1 - self.final_factor) * cosine


@dataclass(frozen=True)
class MultiStep:
    """Linear warm-up, then division by 10 at the milestones, as mmdetection trains.

    Attributes:
        milestones: the epochs, counted from 0, from whose start on the rate is lower.
        warmup_steps: how long the rate rises.
        warmup_factor: where it starts.
    """

    milestones: tuple[int, ...]
    warmup_steps: int = 500
    warmup_factor: float = 1e-3

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See Schedule."""
        passed = sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return (self.warmup_factor + (1 - self.warmup_factor) * warm) * 0.1**passed


@dataclass(frozen=True)
class Poly:
    """(1 - step / total_steps) ** power, as mmsegmentation trains."""

    power: float = 0.9

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See Schedule."""
        return (1 - step / total_steps) ** self.power
