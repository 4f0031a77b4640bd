"""A stand-in for a GPU: the CUDA sources, compiled as host C++ and run a thread at a time."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
import torch

from ..cmake_module import build

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"simt-{sys.implementation.cache_tag}"


@dataclass(frozen=True)
class Code:
    """What multiplies a dtype on an architecture."""

    arch: int
    dtype: torch.dtype
    wmma: bool = False

    def __str__(self) -> str:
        return f"sm_{self.arch}{' wmma' if self.wmma else ''} {self.dtype}"


# fp32 runs the same code on all, but for the tiles of wide heads on sm_75
CODES = (
    Code(70, torch.float16),
    Code(70, torch.float16, wmma=True),
    Code(70, torch.float32),
    Code(75, torch.float16),
    Code(80, torch.float16),
    Code(80, torch.bfloat16),
)

# bytes of shared memory that a block may have
SHARED_MEMORY = {70: 96 * 1024, 75: 64 * 1024, 80: 163 * 1024}


def library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment(treat_as_arch: int | None = None) -> dict[str, str]:
    """In which Python can import simt_cuda, of a build with PVT_KERNELS_TREAT_AS_ARCH or not."""
    build(ROOT / "tests" / "simt", BUILD)
    folder = BUILD
    if treat_as_arch is not None:
        folder /= f"as-{treat_as_arch}"
    folders = [str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        # both before Python: AddressSanitizer looks for the functions of exceptions first
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join(folders),
    }


class Worker:
    """The process that the kernels run in; what it says on stderr goes to `log`."""

    def __init__(self, log: IO[bytes], treat_as_arch: int | None = None) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            env=environment(treat_as_arch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def call(self, request: object) -> object:
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            self.process.wait()
            self.log.seek(0)
            pytest.fail("the kernels ended their process:\n" + self.log.read().decode())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


@dataclass
class Device:
    """Runs functions of the package on CPU tensors, with the CUDA backend forced."""

    worker: Worker
    arch: int = 80
    multiprocessors: int = 4
    seed: int = 0
    # fp16 on sm_70 by nvcuda::wmma
    wmma: bool = False
    # the launch that reports an error, counted from 0
    failing_launch: int = -1
    # bytes that a block may have, if not as many as the architecture's
    shared_memory: int | None = None
    # whether to count conflicts of accesses to shared memory
    watch_banks: bool = False
    # what the last call did, by the names of simt.h; each launch's symbol, bytes loaded and stored
    counters: dict[str, int | list[int] | list[str]] = field(default_factory=dict)

    def choose(self, code: Code) -> None:
        self.arch, self.wmma = code.arch, code.wmma

    def run(self, function: str, *arguments: object) -> object:
        """`function` is a dotted name; what it raises is raised here."""
        settings = {
            "arch": self.arch,
            "multiprocessors": self.multiprocessors,
            "shared_memory_per_block": self.shared_memory or SHARED_MEMORY[self.arch],
            "seed": self.seed,
            "failing_launch": self.failing_launch,
            "watch_banks": self.watch_banks,
        }
        environment = {"PVT_KERNELS_SM70_WMMA": str(int(self.wmma))}
        request = (settings, environment, function, arguments)
        result, self.counters = self.worker.call(request)
        if isinstance(result, Exception):
            raise result
        return result
