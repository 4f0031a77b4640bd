import os

# one process of a parallel run each, and bits that don't depend on how many cores are free
os.environ.setdefault("OMP_NUM_THREADS", "2")
# waiting threads sleep: with more threads than cores, spinning ones take the time of others
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.pop("PVT_KERNELS_BACKEND", None)

from pathlib import Path

import pytest
import torch

# Triton reads it when a kernel is defined; without a GPU its kernels run in the interpreter
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_choice_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests pretend other devices, builds and backends, which nothing does in one process."""
    from pvt_kernels.backends import registry

    monkeypatch.setattr(registry, "_chosen", {})


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory) -> dict[str, Path]:
    """The folders of generated data by layout: 24 images to train and 6 to test."""
    from pvt_kernels.systems.datasets.shapes import make_data

    return make_data(tmp_path_factory.mktemp("shapes") / "data", images=24)
