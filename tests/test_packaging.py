"""The source distribution, and what `pip install .` leaves in the folder that it ran in."""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pvt_kernels import _C

ROOT = Path(__file__).resolve().parent.parent
# of the files in the repository, those that a user neither builds nor tests with
LEFT_OUT = (".ci/", ".github/", ".gitignore")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution, unpacked."""
    for name in ("setuptools", "cmake", "pybind11"):
        pytest.importorskip(name, reason=f"{name} is not installed here: pip install {name}")
    folder = tmp_path_factory.mktemp("sdist")
    command = [
        *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder),
        *("sdist", "--dist-dir", folder),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    (unpacked,) = folder.glob("pvt_kernels-*/")
    return unpacked


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone of the repository")
@pytest.mark.skipif(shutil.which("git") is None, reason="no git on PATH")
def test_the_sdist_holds_what_the_repository_does(sdist):
    # those to be committed included
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = {
        name
        for name in listing.splitlines()
        if (ROOT / name).exists()
        and not name.startswith(LEFT_OUT)
        # plots of the results, unlike the documentation's
        and not (name.startswith("benchmarks/") and name.endswith(".png"))
    }
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert wanted - held == set()
    # what setuptools adds
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in held - wanted - made if ".egg-info/" not in name} == set()


def import_in(folder: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = "import pvt_kernels; print(pvt_kernels.__file__)"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_sources_without_a_module_or_with_an_outdated_one_say_what_to_do(sdist, tmp_path):
    sources = shutil.copytree(sdist, tmp_path / "sources")
    package = sources / "pvt_kernels"
    remedy = f"run `python -m pip install .` in {sources}"
    before = import_in(sources)
    assert before.returncode == 1
    assert before.stderr.splitlines()[-1] == (
        f"ImportError: {package} has no compiled module for "
        f"{sys.implementation.cache_tag}: {remedy}"
    )

    module = shutil.copy(_C.__file__, package)
    after = import_in(sources)
    assert after.returncode == 0, after.stderr
    assert after.stdout.strip() == str(package / "__init__.py")

    stub = package / "_C" / "cpu.pyi"
    stub.write_text(stub.read_text() + "def added() -> None: ...\n")
    outdated = import_in(sources)
    assert outdated.returncode == 1
    assert outdated.stderr.splitlines()[-1] == (
        f"ImportError: {module} was built from other sources: {remedy}"
    )


@pytest.mark.skipif(os.name != "posix", reason="the compiler is wrapped by a shell script")
@pytest.mark.nightly
def test_sources_run_where_they_lie_once_they_are_installed(sdist, tmp_path):
    sources = shutil.copytree(sdist, tmp_path / "sources")
    # a compiler that doesn't optimize, since this is about what goes where
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {shlex.quote(os.environ.get("CXX", "c++"))} "$@" -O0\n')
    compiler.chmod(0o755)
    build = [
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
        *("--no-index", "--wheel-dir", tmp_path, sources),
    ]
    environment = os.environ | {"CXX": str(compiler), "PVT_KERNELS_CUDA_ARCHS": "none"}
    run = subprocess.run(build, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr

    (wheel,) = tmp_path.glob("*.whl")
    packed = zipfile.ZipFile(wheel).namelist()
    assert len([name for name in packed if name.endswith((".so", ".pyd"))]) == 1
    assert {name.split("/")[0] for name in packed if ".dist-info/" not in name} == {"pvt_kernels"}
    after = import_in(sources)
    assert after.returncode == 0, after.stderr
    assert after.stdout.strip() == str(sources / "pvt_kernels" / "__init__.py")
