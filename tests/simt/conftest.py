import platform

import pytest

from .device import Device, start


@pytest.fixture(scope="session")
def started_device():
    if platform.machine().lower() not in ("x86_64", "amd64") or platform.system() != "Linux":
        pytest.skip("the stand-in for a GPU switches between threads in x86-64 Linux assembly")
    device = start()
    yield device
    device.worker.stdin.close()
    device.worker.wait(timeout=30)


@pytest.fixture
def device(started_device) -> Device:
    """One whose architecture, multiprocessors and seed the test may choose."""
    if started_device.worker.poll() is not None:
        pytest.fail("the kernels ended their process in an earlier test")
    fresh = Device(started_device.worker, started_device.log)
    return fresh
