"""Runs a Python program on a pvt_kernels._C whose code path amx_bf16 needs no AMX: its instructions
are those of amx_stand_in.h.

`build()` makes the module. `pytest -p tests.csrc.amx_module` imports it as pvt_kernels._C from
where the environment variable of that name below points.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "amx-stand-in"
VARIABLE = "PVT_KERNELS_TEST_MODULE"


def build() -> Path:
    """Compile the module, or what changed of it."""
    import cmake
    import pybind11

    beside = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
    program = Path(cmake.CMAKE_BIN_DIR, "cmake")
    configure = [
        *(program, "-S", ROOT, "-B", FOLDER, "-G", "Ninja"),
        "-DPVT_KERNELS_AMX_STAND_IN=ON",
        # what other dtypes than bfloat16 run is nothing that this module is for
        "-DPVT_KERNELS_PORTABLE_ALONE=ON",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=beside)}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    environment = {**os.environ, "PVT_KERNELS_CUDA_ARCHS": "none"}
    subprocess.run(configure, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([program, "--build", FOLDER, "--target", "_C"], env=environment, check=True)
    (module,) = FOLDER.glob("_C.*")
    return module


def _load(path: str) -> None:
    spec = importlib.util.spec_from_file_location("pvt_kernels._C", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pvt_kernels._C"] = module
    spec.loader.exec_module(module)


if path := os.environ.get(VARIABLE):
    _load(path)
