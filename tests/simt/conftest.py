import platform
import tempfile
from collections.abc import Iterator

import pytest

from .device import Device, Worker


@pytest.fixture(scope="session")
def worker():
    yield from run_worker()


@pytest.fixture
def device(worker) -> Device:
    """One whose architecture, multiprocessors and seed the test may choose."""
    return Device(worker)


@pytest.fixture(scope="session", params=[70, 75], ids="as sm_{}".format)
def treat_as_arch(request) -> int:
    return request.param


@pytest.fixture(scope="session")
def treating_worker(treat_as_arch):
    yield from run_worker(treat_as_arch)


@pytest.fixture
def treated_device(treating_worker) -> Device:
    """A newer one, as a build with PVT_KERNELS_TREAT_AS_ARCH sees it."""
    return Device(treating_worker)


def run_worker(treat_as_arch: int | None = None) -> Iterator[Worker]:
    if platform.machine().lower() not in ("x86_64", "amd64") or platform.system() != "Linux":
        pytest.skip("the stand-in for a GPU switches between threads in x86-64 Linux assembly")
    with tempfile.TemporaryFile() as log:
        worker = Worker(log, treat_as_arch)
        yield worker
        worker.close()
