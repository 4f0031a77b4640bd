"""Packages that only the benchmark needs."""

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import a module of the `bench` extra.

    Raises:
        ImportError: the package is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ImportError(
            f"the benchmark needs {package}, which is not installed: pip install pvt_kernels[bench]"
        ) from error
