"""Compiles a folder of the tests that is a CMake project of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def build(source: Path, folder: Path) -> None:
    """Incrementally; skips where that can't be.

    Processes that run tests side by side compile one after the other.
    """
    import fcntl  # which Windows lacks

    cmake = pytest.importorskip("cmake", reason="cmake is not installed here: pip install cmake")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed here")
    ninja = shutil.which(
        "ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if ninja is None:
        pytest.skip("ninja is not installed here: pip install ninja")
    program = Path(cmake.CMAKE_BIN_DIR, "cmake")
    configure = [
        *(program, "-S", source, "-B", folder, "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [program, "--build", folder]):
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == 0, run.stdout + run.stderr
