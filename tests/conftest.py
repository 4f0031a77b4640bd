import os

# one process of a parallel run each, and bits that don't depend on how many cores are free
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.pop("PVT_KERNELS_BACKEND", None)

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
