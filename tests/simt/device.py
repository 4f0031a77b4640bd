"""A stand-in for a GPU: the CUDA sources, compiled as host C++ and run a thread at a time."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"simt-{sys.implementation.cache_tag}"

# what each architecture multiplies in; fp32 runs the same code on all
ARCH_DTYPES = (
    (70, torch.float16),
    (70, torch.float32),
    (75, torch.float16),
    (80, torch.float16),
    (80, torch.bfloat16),
)

# bytes of shared memory that a block may have
SHARED_MEMORY = {70: 96 * 1024, 75: 64 * 1024, 80: 163 * 1024}


def build() -> Path:
    """Compiles simt_cuda, incrementally, and returns its folder; skips where it can't."""
    cmake = pytest.importorskip("cmake", reason="cmake is not installed here: pip install cmake")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed here")
    ninja = shutil.which(
        "ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if ninja is None:
        pytest.skip("ninja is not installed here: pip install ninja")
    program = Path(cmake.CMAKE_BIN_DIR, "cmake")
    configure = [
        *(program, "-S", ROOT / "tests" / "simt", "-B", BUILD, "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    for command in (configure, [program, "--build", BUILD]):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    return BUILD


@dataclass
class Device:
    """Runs `forward` and `backward` of an op's cuda.py on CPU tensors."""

    worker: subprocess.Popen
    log: tempfile._TemporaryFileWrapper
    arch: int = 80
    multiprocessors: int = 4
    seed: int = 0
    counters: dict[str, int] = field(default_factory=dict)

    def run(self, op: str, function: str, *arguments: object) -> object:
        settings = {
            "arch": self.arch,
            "multiprocessors": self.multiprocessors,
            "shared_memory_per_block": SHARED_MEMORY[self.arch],
            "seed": self.seed,
        }
        try:
            pickle.dump((settings, op, function, arguments), self.worker.stdin)
            self.worker.stdin.flush()
            result, self.counters = pickle.load(self.worker.stdout)
        except (EOFError, BrokenPipeError):
            self.worker.wait()
            self.log.seek(0)
            pytest.fail("the kernels ended their process:\n" + self.log.read().decode())
        if isinstance(result, Exception):
            raise result
        return result


def library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def start() -> Device:
    folder = build()
    environment = os.environ | {
        # both before Python: AddressSanitizer looks for the functions of exceptions at the start
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    log = tempfile.TemporaryFile()
    worker = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("worker.py")), str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
    )
    return Device(worker, log)
