"""Workers live as long as the run needs them, and no longer."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils import data

from pvt_kernels.systems.training.loading import batches

CPU = torch.device("cpu")


class Pids(data.Dataset):
    """Samples are the numbers of the workers that read them; the last takes for ever."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 2:
            time.sleep(1000)
        return os.getpid()


def read():
    """Batches of one worker, and the worker, which then is busy."""
    samples = batches(Pids(), lambda pids: pids[0], 1, CPU)
    return samples, next(samples)


def alive(pid):
    """Whether a process runs: one that has ended and that nobody asked about does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid, seconds=10):
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_worker_is_deaf_to_other_processes_signals_and_ended_by_its_own(name, monkeypatch):
    monkeypatch.setattr(data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    samples, worker = read()
    subprocess.run(["sh", "-c", f"kill -{name} {worker}"], check=True)
    assert next(samples) == worker and not ends(worker, 0.5)
    samples.close()
    assert ends(worker)


def test_the_runs_own_signals_are_as_they_were():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    samples, worker = read()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    os.kill(worker, signal.SIGTERM)
    assert ends(worker)
    samples.close()


ORPHAN = """
from tests.systems.training.test_loading import read
samples, worker = read()
print(worker, flush=True)
{}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_no_worker_outlives_its_run(end, status):
    """Neither of one that is killed, nor of one that stops while something holds the batches."""
    run = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(end)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == status, run.stderr
    assert ends(int(run.stdout))
