"""compute-sanitizer on small calls of every op, forward and backward."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steps.record import REHEARSE, record, run_command, seconds_left

MEMCHECK, RACECHECK = "memcheck", "racecheck"
ERROR_STATUS = 9
# where a CUDA toolkit is that is not on PATH
TOOLKIT = Path("/usr/local/cuda/bin")
BACKENDS = ("cuda", "triton") if not REHEARSE else ("cpu",)


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit."""
    beside = TOOLKIT / name
    return shutil.which(name) or (str(beside) if beside.exists() else None)


def watch(
    check: str, about: str, module: str, arguments: list[str], limit: float, **settings: str
) -> None:
    """Run a module in compute-sanitizer, and record what it found; on the CPU the module alone.

    Args:
        check: which of the sanitizer's tools.
        about: what is run.
        settings: environment variables.
    """
    program = tool("compute-sanitizer")
    if program is None and not REHEARSE:
        record("left out", part=f"{check} of {about}", reason="compute-sanitizer is not there")
        return
    options = ["--tool", check, "--print-limit", "20", "--error-exitcode", str(ERROR_STATUS)]
    watched = [] if REHEARSE else [program, *options]
    command = [*watched, sys.executable, "-m", module, *arguments]
    status, output = run_command(command, limit, os.environ | settings)
    print(output[-4000:], flush=True)
    lines = [line for line in output.splitlines() if not line.startswith("RECORD")]
    found = [line for line in lines if line.startswith("=========")]
    record("sanitizer", check=check, about=about, ok=status == 0, status=status,
           found=found[:12] + found[-1:], last=lines[-1:])  # fmt: skip


def main() -> None:
    # every tensor an allocation of its own, so that what lies beyond one is nobody's
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with ThreadPoolExecutor(4 if not REHEARSE else 1) as pool:
        runs = [
            pool.submit(
                watch, check, backend, "steps.target", ["--backend", backend, "--small"],
                seconds_left() - 3, **(alone if check == MEMCHECK else {}),
            )
            for check in (MEMCHECK, RACECHECK) for backend in BACKENDS
        ]  # fmt: skip
        for run in runs:
            run.result()


if __name__ == "__main__":
    main()
