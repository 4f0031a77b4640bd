"""Ctrl-C, as a terminal sends it: to all processes of a command at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pvt_kernels.benchmarking.results import Results

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups")

PATIENCE_S = 240
BENCH = ["bench", "--quick", "--device=cpu", "--sizes=64x96", "--models=pvt_tiny", "--stages=1"]


def start(folder, *arguments):
    """A command in a process group of its own, with its output in files."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )


def wait_for(condition, process):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def interrupt(process):
    """Ctrl-C; returns the exit status when no process of the group is left."""
    os.killpg(process.pid, signal.SIGINT)
    status = process.wait(PATIENCE_S)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return status
        time.sleep(0.05)
    raise AssertionError("a process of the group is still running")


def text_of(folder, name):
    return (folder / name).read_text()


@pytest.mark.parametrize("ended", [pytest.param(1, marks=pytest.mark.nightly), 3])
def test_a_benchmark_ends_with_what_it_has(ended, tmp_path):
    """After the first case, and in the memory sweep, which runs in processes of its own."""
    process = start(tmp_path, "-m", "pvt_kernels", *BENCH, "--output=run")
    samples = tmp_path / "run/results.json"
    wait_for(lambda: f"[{ended + 1}/" in text_of(tmp_path, "out"), process)
    assert interrupt(process) == 130
    assert text_of(tmp_path, "err") == (
        f"Interrupted: {ended} of 4 cases are in run/results.json and run/table.md\n"
    )
    results = Results.load(samples)
    assert results.ended == ended and not results.complete
    assert "**Interrupted** after" in text_of(tmp_path / "run", "table.md")


def test_a_start_ends_without_a_traceback(tmp_path):
    # the interpreter tells what it imports
    process = start(tmp_path, "-X", "importtime", "-m", "pvt_kernels", "info")
    wait_for(lambda: " torch._" in text_of(tmp_path, "err"), process)
    assert interrupt(process) == 130
    lines = text_of(tmp_path, "err").splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    assert said == ["Interrupted while PyTorch was being imported."]


def test_a_library_that_imports_the_package_keeps_its_signals(tmp_path):
    (tmp_path / "other").mkdir()
    Path(tmp_path / "other/__init__.py").write_text("import pvt_kernels")
    Path(tmp_path / "other/__main__.py").write_text(
        "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    assert start(tmp_path, "-m", "other").wait(PATIENCE_S) == 0
    assert text_of(tmp_path, "out") == "True\n"


def test_compiling_says_nothing_of_a_missing_gpu(tmp_path):
    """Where nvcc is installed, PyTorch warns that there is no CUDA runtime."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch\n"
        "from pvt_kernels.benchmarking import memory\n"
        "os.environ['CUDA_HOME'] = os.getcwd()\n"
        "torch.cuda.is_available = lambda: False\n"
        "def compile():\n"
        "    torch.compile(lambda x: 2 * x + 1)(torch.ones(3))\n"
        "    return memory.Peak(0, 0.0)\n"
        "if __name__ == '__main__':\n"
        "    compile()\n"
        "    memory.in_fresh_process(compile)\n"
    )
    process = start(tmp_path, str(script))
    assert process.wait(PATIENCE_S) == 0, text_of(tmp_path, "err")
    assert "CUDA" not in text_of(tmp_path, "err") + text_of(tmp_path, "out")
