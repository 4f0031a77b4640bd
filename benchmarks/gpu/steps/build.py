"""Builds the package into a folder of its own: for the GPU at hand, else without CUDA.

Standard library only. The folder's path goes to WORK/site.txt, for the other steps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from steps.record import REHEARSE, WORK, record, run_command, seconds_left, short

LEFT_OUT = (".*", "build", "dist", "site", "results", "runs", "*.egg-info", "*.so", "__pycache__")
FACTS = "from pvt_kernels import _C; print('FACTS', _C.build_info())"


def gpu_arch() -> str:
    """90 for a GPU of compute capability 9.0; none without one."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    status, output = (1, "") if REHEARSE else run_command(query, 20)
    digits = "".join(c for c in output.partition("\n")[0] if c.isdigit())
    return digits if status == 0 and len(digits) in (2, 3) else "none"


def build(source: Path, name: str, arch: str, limit: float, **settings: str) -> Path | None:
    """A folder with the package, for PYTHONPATH; None if it can't be built.

    Args:
        source: the repository, of which a copy is built.
        name: of the folder.
        settings: environment variables.
    """
    begin = time.monotonic()
    tree, folder = WORK / f"source-{name}", WORK / f"site-{name}"
    for old in (tree, folder):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    env = os.environ | {"PVT_KERNELS_CUDA_ARCHS": arch, **settings}
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps",
               "--no-index", "--no-cache-dir", "--disable-pip-version-check",
               "--target", str(folder), str(tree)]  # fmt: skip
    status, output = run_command(command, limit, env)
    if status == 0:
        env["PYTHONPATH"] = str(folder)
        status, imported = run_command([sys.executable, "-c", FACTS], 60, env)
        output += imported
    facts = [line for line in output.splitlines() if line.startswith("FACTS ")]
    why = None if status == 0 else short(output[-1500:], 1500)
    record("build", name=name, arch=arch, settings=settings, ok=status == 0, facts=facts,
           seconds=round(time.monotonic() - begin, 1), error=why)  # fmt: skip
    return folder if status == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    source = parser.parse_args().source.resolve()
    for arch in dict.fromkeys((gpu_arch(), "none")):
        folder = build(source, f"for-{arch}", arch, seconds_left() - 5)
        if folder is not None:
            (WORK / "site.txt").write_text(str(folder))
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
