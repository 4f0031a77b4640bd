"""Builds pvt_kernels._C with CMake and ninja; all else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import cmake
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# CMake reads these only when it first configures a build folder.
TOOLCHAIN_VARIABLES = ("CXX", "CXXFLAGS", "CUDAHOSTCXX", "CUDAFLAGS", "LDFLAGS")


def build_folder(build_type: str) -> Path:
    """One folder for each interpreter and toolchain, kept so that a rebuild is incremental."""
    settings = [build_type, *(os.environ.get(name, "") for name in TOOLCHAIN_VARIABLES)]
    digest = zlib.crc32("\0".join(settings).encode())
    return ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{digest:08x}"


def find_ninja() -> str:
    """Ninja from PATH or from beside the interpreter, whose environment may not be activated."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    ninja = shutil.which("ninja", path=path)
    if ninja is None:
        raise FileNotFoundError(f"ninja was not found on {path}: pip install ninja")
    return ninja


def pybind11_package(folder: Path) -> Path:
    """Where CMake finds pybind11: a copy in the build folder, whose time stamps stay.

    Each isolated build has it elsewhere and anew, and all that includes it would be compiled again.
    """
    source, copy = Path(pybind11.__file__).parent, folder / "pybind11"
    program = str(Path(cmake.CMAKE_BIN_DIR, "cmake"))
    for part in ("include", "share/cmake"):
        command = (program, "-E", "copy_directory_if_different", source / part, copy / part)
        subprocess.run(command, check=True)
    return copy / "share/cmake/pybind11"


class CMakeBuild(build_ext):
    def run(self) -> None:
        super().run()
        # Also beside the sources, as an editable install does: from the root of the clone Python
        # finds that folder before the installed package. What a wheel packs comes from build_lib.
        if not self.inplace:
            self.copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        build_type = "Debug" if self.debug else "Release"
        folder = build_folder(build_type)
        module_folder = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        program = str(Path(cmake.CMAKE_BIN_DIR, "cmake"))
        configure = [
            *(program, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_BUILD_TYPE={build_type}",
            f"-DCMAKE_MAKE_PROGRAM={find_ninja()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_package(folder)}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run([program, "--build", str(folder)], check=True)
        subprocess.run([program, "--install", str(folder), "--prefix", module_folder], check=True)


setup(ext_modules=[Extension("pvt_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
