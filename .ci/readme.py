"""Runs the README's commands as they stand, in their order: its blocks that are marked as sh.

    python .ci/readme.py

runs them here, with the Python that runs this; call it in a fresh clone and in a fresh virtual
environment, as somebody has them who types what the README says. Ends at the first that fails, or
that changes a tracked file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands(text: str) -> list[str]:
    """The lines of the blocks marked as sh; a line that ends in a backslash goes on."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def main() -> int:
    # as in an activated environment
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix}
    taken = []
    for command in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        print(f"==> {command}", flush=True)
        begin = time.monotonic()
        status = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment).returncode
        taken.append((time.monotonic() - begin, command))
        if status != 0:
            print(f"README: {command!r} ended with status {status}", file=sys.stderr)
            return 1
    for seconds, command in taken:
        print(f"{seconds:8.1f} s  {command}")
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    if changed:
        print(f"README's commands changed tracked files, or left others:\n{changed}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
