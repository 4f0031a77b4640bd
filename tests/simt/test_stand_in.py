"""The stand-in for a GPU itself: what it finds wrong, and what it counts."""

import subprocess
import sys

import pytest

from .device import environment


@pytest.fixture(scope="module")
def python(worker):
    """python(statements) runs them in a process of their own, which a race may end."""
    variables = environment()

    def run(statements: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", statements]
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("other_stores", [False, True])
@pytest.mark.parametrize(
    ("other", "meeting"), [(1, "nowhere"), (1, "shuffle"), (40, "nowhere"), (40, "warp")]
)
def test_a_missing_barrier_ends_the_process(python, other, other_stores, meeting):
    run = python(f"import simt_cuda; simt_cuda.share_a_word({other}, {other_stores}, {meeting!r})")
    assert run.returncode != 0
    assert "another thread" in run.stderr


@pytest.mark.parametrize(("other", "meeting"), [(0, "nowhere"), (1, "warp"), (40, "block")])
def test_what_is_in_order_passes(device, other, meeting):
    for stores in (False, True):
        device.run("simt_cuda.share_a_word", other, stores, meeting)


@pytest.mark.parametrize(
    ("bytes_", "stride", "ways"),
    [
        (4, 0, 1),  # all the same word
        (4, 1, 1),
        (4, 2, 2),
        (4, 32, 32),
        (4, 33, 1),
        (8, 2, 1),
        (8, 32, 16),  # of half a warp
        (16, 4, 1),
        (16, 8, 2),
        (16, 32, 8),  # of a quarter
        (16, 36, 1),
    ],
)
def test_bank_conflicts_are_counted_in_phases(device, bytes_, stride, ways):
    device.watch_banks = True
    device.run("simt_cuda.load_with_stride", bytes_, stride)
    assert device.counters["shared_accesses"] == 1
    assert device.counters["most_bank_ways"] == ways
