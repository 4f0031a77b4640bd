"""Random numbers as a function of what they are for.

Seeds come from the run's seed and the sample or step that they are used for, so nothing about
generators has to be saved: a run resumed anywhere, on any number of processes and workers, draws
the same numbers.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

# what a seed is for: the same numbers in another place give other seeds
ORDER, SAMPLE, STEP = range(3)


def derive(seed: int, *place: int) -> int:
    """A seed of 63 bits from the run's seed and a place, all non-negative."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> 1)


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators, of all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded_on_cpu(seed: int) -> Iterator[None]:
    """Seed the global generators but for GPUs', and give them back their states."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
