"""The kernels of older GPUs, built so that the GPU at hand runs them, and checked."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steps.build import build, gpu_arch
from steps.record import REHEARSE, record, run_command, seconds_left, short

# of V100 and T4
ARCHS = ("70", "75")
VARIABLE = "PVT_KERNELS_TREAT_AS_ARCH"
# that the check of a build takes
CHECK_S = 30


def knows_variable(source: Path) -> bool:
    files = (source / "CMakeLists.txt", *(source / "csrc").glob("*.cmake"))
    return any(VARIABLE in path.read_text(errors="replace") for path in files)


def build_and_check(source: Path, arch: str) -> None:
    """`check --quick` of a build's backend cuda; on the CPU a few calls of the package at hand."""
    env = dict(os.environ)
    if not REHEARSE:
        limit = seconds_left() - CHECK_S
        folder = build(source, f"as-{arch}", gpu_arch(), limit, **{VARIABLE: arch})
        if folder is None:
            return
        env["PYTHONPATH"] = str(folder)
    command = [sys.executable, "-m", "steps.check", "--quick", "--untimed", "--variant",
               f"as {arch}", "--backends", "cpu" if REHEARSE else "cuda"]  # fmt: skip
    command += ["--first", "4"] if REHEARSE else []
    status, output = run_command(command, seconds_left() - 2, env)
    print(output[-3000:], flush=True)
    if status != 0:
        record("failed", part=f"check as {arch}", status=status, error=short(output[-400:], 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    source = parser.parse_args().source.resolve()
    if not knows_variable(source) and not REHEARSE:
        record("left out", part="treat_as", reason=f"the source does not know {VARIABLE}")
        return
    with ThreadPoolExecutor(1 if REHEARSE else len(ARCHS)) as pool:
        for run in [pool.submit(build_and_check, source, arch) for arch in ARCHS]:
            run.result()


if __name__ == "__main__":
    main()
