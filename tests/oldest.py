"""Fails where a package is not the oldest that pyproject.toml allows; for `make test-oldest`."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> int:
    # of the package, its extras and its build
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)', PYPROJECT.read_text(encoding="utf-8")))
    # what follows a plus is the build's
    installed = {name: Version(version(name).partition("+")[0]) for name in bounds}
    print(", ".join(f"{name} {found}" for name, found in installed.items()))
    newer = [name for name, found in installed.items() if found != Version(bounds[name])]
    for name in newer:
        print(f"{name}: pyproject.toml allows {bounds[name]}, installed is {installed[name]}")
    return int(bool(newer or not bounds))


if __name__ == "__main__":
    sys.exit(main())
