import platform
import tempfile

import pytest

from .device import Device, Worker


@pytest.fixture(scope="session")
def worker():
    if platform.machine().lower() not in ("x86_64", "amd64") or platform.system() != "Linux":
        pytest.skip("the stand-in for a GPU switches between threads in x86-64 Linux assembly")
    with tempfile.TemporaryFile() as log:
        worker = Worker(log)
        yield worker
        worker.close()


@pytest.fixture
def device(worker) -> Device:
    """One whose architecture, multiprocessors and seed the test may choose."""
    return Device(worker)
