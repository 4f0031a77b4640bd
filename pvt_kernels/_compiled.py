"""Imports where the compiled module is there and was built from these sources, or says what to do.

Without a module the folder of its stubs is imported in its place, as a namespace package; one left
from before an update of the sources would fail somewhere else, for want of a function.
"""

import hashlib
import sys
from pathlib import Path

# first: on one machine (Python 3.12, PyTorch 2.11) PyTorch crashed when it was imported after _C
import torch  # noqa: F401

from pvt_kernels import _C

FOLDER = Path(__file__).resolve().parent


def interface() -> str:
    """The digest of the stubs, which the build puts into the module."""
    stubs = sorted((FOLDER / "_C").glob("*.pyi"))
    return hashlib.sha256(b"".join(stub.read_bytes() for stub in stubs)).hexdigest()


def _check() -> None:
    remedy = f"run `python -m pip install .` in {FOLDER.parent}"
    if not hasattr(_C, "build_info"):
        python = sys.implementation.cache_tag
        raise ImportError(f"{FOLDER} has no compiled module for {python}: {remedy}")
    if _C.build_info().get("interface") != interface():
        raise ImportError(f"{_C.__file__} was built from other sources: {remedy}")


_check()
