"""The compiled module, what it says about itself, and how the build chooses CUDA."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pvt_kernels import _C, _compiled

ROOT = Path(__file__).resolve().parent.parent
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
X86_FEATURES = {
    "avx2",
    "fma",
    "avx512f",
    "avx512dq",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
}


def test_build_info_is_complete():
    info = _C.build_info()
    assert set(info) == {
        *("version", "interface", "compiler", "build_type"),
        *("cuda", "cuda_archs", "cuda_missing", "cuda_treat_as_arch"),
    }
    assert info["version"] == importlib.metadata.version("pvt_kernels")
    assert info["interface"] == _compiled.interface()
    assert re.fullmatch(r"\w+ \d+(\.\d+)+", info["compiler"])
    assert info["build_type"] in ("Release", "Debug")


def test_build_info_has_cuda_or_a_reason():
    info = _C.build_info()
    if info["cuda"] is None:
        assert info["cuda_missing"]
        assert info["cuda_archs"] == []
        assert info["cuda_treat_as_arch"] is None
    else:
        assert info["cuda_missing"] is None
        assert re.fullmatch(r"\d+\.\d+\.\d+", info["cuda"])
        *machine_code, ptx = info["cuda_archs"]
        versions = [int(arch.removeprefix("sm_")) for arch in machine_code]
        assert versions == sorted(set(versions))
        # of the newest one's family
        assert ptx == f"compute_{max(family for family in (70, 75, 80) if family <= versions[-1])}"


def find_cuobjdump() -> str | None:
    """From PATH, or the one that Triton brings."""
    folders = [os.environ["PATH"]]
    if spec := importlib.util.find_spec("triton"):
        folders.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


@pytest.mark.skipif(_C.build_info()["cuda"] is None, reason="built without CUDA")
@pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump on PATH or in triton")
def test_module_holds_the_code_that_it_lists():
    listing = subprocess.run(
        [find_cuobjdump(), "--list-elf", "--list-ptx", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    machine_code = set(re.findall(r"\.(sm_\d+)\.cubin", listing))
    ptx = {f"compute_{arch}" for arch in re.findall(r"\.sm_(\d+)\.ptx", listing)}
    assert machine_code | ptx == set(_C.build_info()["cuda_archs"])


@pytest.mark.skipif(not X86_64, reason="these names are x86-64's")
def test_cpu_features_of_x86():
    assert set(_C.cpu_features()) == X86_FEATURES


@pytest.mark.skipif(not X86_64, reason="only x86-64's features are looked up in /proc/cpuinfo")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_cpu_features_agree_with_the_kernel():
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    listed = set(flags[1].split())
    assert _C.cpu_features() == {name: name in listed for name in X86_FEATURES}


def test_cuda_devices_or_a_readable_error():
    info = _C.build_info()
    devices, error = [], None
    try:
        devices = _C.cuda_devices()
    except RuntimeError as caught:
        error = str(caught)
    if info["cuda"] is None:
        assert error == f"pvt_kernels was built without CUDA: {info['cuda_missing']}"
    elif error is not None:
        assert re.fullmatch(r"no CUDA driver is installed|cuda\w+ failed: .+ \(\w+\)", error)
    for device in devices:
        assert device["name"]
        assert device["compute_capability"] >= (3, 0)
        assert device["multiprocessors"] > 0
        assert device["shared_memory_per_block"] >= 48 * 1024
        assert (device["code"] is None) == bool(device["code_missing"])
        assert device["code"] is None or device["code"] in info["cuda_archs"]


def test_module_loads_alone_and_sees_no_hidden_device():
    """Loaded from its file, so that no library of PyTorch's is there to lean on."""
    program = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
try:
    print(len(module.cuda_devices()), "devices")
except RuntimeError as error:
    print("error:", error)
"""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(("0 devices", "error: "))


@pytest.fixture
def configure(tmp_path):
    """Configures the build in an empty folder: configure(PATH=..., ...) -> CompletedProcess."""
    cmake = pytest.importorskip("cmake", reason="cmake is not installed here: pip install cmake")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed here")
    ninja = shutil.which(
        "ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if ninja is None:
        pytest.skip("ninja is not installed here: pip install ninja")

    def run(source: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
        command = [
            *(Path(cmake.CMAKE_BIN_DIR, "cmake"), "-S", source, "-B", tmp_path, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        return subprocess.run(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


def words(text: str) -> str:
    """Without the line breaks that CMake puts into its messages."""
    return " ".join(text.split())


@pytest.fixture
def fake_tools(tmp_path):
    """Stand-ins that run the given shell lines: fake_tools(nvcc=lines, ...) -> PATH with them."""
    if os.name != "posix":
        pytest.skip("the stand-ins are shell scripts")

    def make(**lines: str) -> str:
        folder = tmp_path / "fake"
        folder.mkdir()
        for name, content in lines.items():
            tool = folder / name
            tool.write_text(f"#!/bin/sh\n{content}\n")
            tool.chmod(0o755)
        return os.pathsep.join([str(folder), os.environ["PATH"]])

    return make


# What nvcc answers when asked, and success for all else.
LISTS_ARCHS = 'if [ "$1" = --list-gpu-arch ]; then echo compute_60 compute_80 compute_90; fi'


def test_none_builds_without_cuda_and_says_why(configure, tmp_path):
    run = configure(PVT_KERNELS_CUDA_ARCHS="none")
    assert run.returncode == 0, run.stdout
    reason = "PVT_KERNELS_CUDA_ARCHS=none"
    assert f"building without CUDA: {reason}" in run.stdout
    config = (tmp_path / "generated" / "build_config.h").read_text()
    assert f'#define PVT_KERNELS_CUDA_MISSING "{reason}"' in config
    assert '#define PVT_KERNELS_CUDA_ARCHS ""' in config


@pytest.mark.parametrize(
    ("given", "named"), [("12", "12"), ("80;12", "12"), ("90, 60", "60"), ("off", "off")]
)
def test_architecture_that_nvcc_lacks_is_an_error(configure, fake_tools, given, named):
    run = configure(PVT_KERNELS_CUDA_ARCHS=given, PATH=fake_tools(nvcc=LISTS_ARCHS))
    assert run.returncode != 0
    message = words(run.stdout)
    assert f"PVT_KERNELS_CUDA_ARCHS={given} names {named}, which" in message
    assert "Accepted: none, or any of 80 90." in message


# The driver's tool on a machine with four GPUs: a V100, two T4 and one that nvcc doesn't know yet.
NVIDIA_SMI = "printf '7.0\\n7.5\\n7.5\\n15.0\\n'"


@pytest.fixture
def chosen_code(tmp_path):
    """chosen_code(PATH, **environment) -> what cuda.cmake chooses with the stand-in for nvcc."""
    cmake = pytest.importorskip("cmake", reason="cmake is not installed here: pip install cmake")
    script = tmp_path / "choose.cmake"
    # a script has no language to enable
    script.write_text(
        f"""
cmake_minimum_required(VERSION 3.26)
function(enable_language)
endfunction()
set(PROJECT_BINARY_DIR "{tmp_path}")
set(CMAKE_PLATFORM_INFO_DIR "{tmp_path}")
include("{ROOT}/csrc/cuda.cmake")
message(NOTICE "code: ${{cuda_archs}} flags: ${{cuda_flags}}")
message(NOTICE "families: ${{cuda_families}}, of 70: ${{cuda_flags_70}}")
"""
    )

    def run(path: str, **environment: str) -> str:
        return subprocess.run(
            [Path(cmake.CMAKE_BIN_DIR, "cmake"), "-P", script],
            env=os.environ | {"PVT_KERNELS_CUDA_ARCHS": "", "PATH": path} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        ).stdout

    return run


LISTS_MORE_ARCHS = (
    'if [ "$1" = --list-gpu-arch ]; then'
    " for arch in 75 80 86 87 89 90 100 103 120 121; do echo compute_$arch; done; fi"
)


def test_default_is_the_code_of_the_gpus_in_the_machine(chosen_code, fake_tools):
    output = chosen_code(fake_tools(nvcc=LISTS_MORE_ARCHS, **{"nvidia-smi": NVIDIA_SMI}))
    assert "code: sm_75;compute_75 flags:" in output
    for capability in ("7.0", "15.0"):
        assert f"a GPU of compute capability {capability}, for which" in output


@pytest.mark.parametrize("nvidia_smi", ["echo No devices were found; exit 6", "echo 7.0"])
def test_default_without_such_gpus_is_one_of_each_generation(chosen_code, fake_tools, nvidia_smi):
    output = chosen_code(fake_tools(nvcc=LISTS_MORE_ARCHS, **{"nvidia-smi": nvidia_smi}))
    assert "code: sm_75;sm_80;sm_90;sm_120;compute_80 flags:" in output


def test_every_family_is_compiled_to_ptx_once(chosen_code, fake_tools):
    output = chosen_code(fake_tools(nvcc=LISTS_MORE_ARCHS), PVT_KERNELS_CUDA_ARCHS="90 75 86 90")
    assert "code: sm_75;sm_86;sm_90;compute_80 flags:" in output
    assert "--generate-code=arch=compute_75,code=[sm_75];" in output
    assert "--generate-code=arch=compute_80,code=[sm_86,sm_90,compute_80]\n" in output


def test_treated_as_an_older_gpu_all_run_its_family(chosen_code, fake_tools):
    output = chosen_code(
        fake_tools(nvcc=LISTS_MORE_ARCHS),
        PVT_KERNELS_CUDA_ARCHS="75 90",
        PVT_KERNELS_TREAT_AS_ARCH="70",
    )
    assert "code: sm_75;sm_90;compute_80 flags:" in output
    # by nvcc for what it knows, and no older
    flags = (
        "--generate-code=arch=compute_75,code=[sm_75];"
        "--generate-code=arch=compute_80,code=[sm_90,compute_80]"
    )
    assert f"families: 70, of 70: {flags}\n" in output
    assert "sm_90 compute_80, all with the kernels of 70" in output


@pytest.mark.parametrize(
    ("arch", "archs", "message"),
    [
        ("80", "80", "PVT_KERNELS_TREAT_AS_ARCH must be 70 or 75, or nothing, got 80"),
        ("75", "none", "PVT_KERNELS_TREAT_AS_ARCH=75 asks for CUDA kernels, and the build has"),
        ("75", "70 80", "PVT_KERNELS_TREAT_AS_ARCH=75 is for newer GPUs than 70, which is among"),
    ],
)
def test_an_architecture_that_no_gpu_can_be_treated_as(configure, fake_tools, arch, archs, message):
    lists = 'if [ "$1" = --list-gpu-arch ]; then echo compute_70 compute_80; fi'
    run = configure(
        PVT_KERNELS_TREAT_AS_ARCH=arch, PVT_KERNELS_CUDA_ARCHS=archs, PATH=fake_tools(nvcc=lists)
    )
    assert run.returncode != 0
    assert message in words(run.stdout)


def test_nvcc_that_cannot_compile_is_an_error_with_a_way_out(configure, fake_tools):
    run = configure(PATH=fake_tools(nvcc="echo unsupported host compiler >&2; exit 1"))
    assert run.returncode != 0
    message = words(run.stdout)
    assert "nvcc was found but cannot compile: unsupported host compiler" in message
    assert "set PVT_KERNELS_CUDA_ARCHS=none to build without CUDA" in message


@pytest.mark.skipif(_C.build_info()["cuda"] is None, reason="built without CUDA")
def test_the_kernels_build_alone_as_a_library_of_c_functions(configure, tmp_path):
    # machine code for one architecture, to be quick
    arch = _C.build_info()["cuda_archs"][0].removeprefix("sm_")
    run = configure(source=ROOT / "csrc" / "cuda", PVT_KERNELS_CUDA_ARCHS=arch)
    assert run.returncode == 0, run.stdout
    cmake = importlib.import_module("cmake")
    subprocess.run([Path(cmake.CMAKE_BIN_DIR, "cmake"), "--build", tmp_path], check=True)
    program = f"""
import ctypes

class Status(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 508)]

class Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "token", "head")]

library = ctypes.CDLL({str(tmp_path / "libpvtk_cuda.so")!r})
library.pvtk_plan_attention_forward.restype = Status
# a call whose batch, queries and all else are 0
call, plan, strides = ctypes.create_string_buffer(128), ctypes.c_void_p(), Strides()
status = library.pvtk_plan_attention_forward(
    call, strides, strides, strides, 0, ctypes.byref(plan)
)
print(status.code, status.message.decode())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    refusal = "queries must be from 1 to 2^30, got 0"
    assert result.stdout == f"1 attention_forward: {refusal}\n"


@pytest.mark.parametrize(
    ("treat_as", "instruction", "machine_instruction"),
    [
        pytest.param("70", "mma.sync.aligned.m8n8k4", "HMMA.884", marks=pytest.mark.nightly),
        ("75", "mma.sync.aligned.m16n8k8", "HMMA.1688"),
    ],
)
def test_the_kernels_of_an_older_gpu_compile_for_newer_ones(
    configure, tmp_path, treat_as, instruction, machine_instruction
):
    run = configure(
        source=ROOT / "csrc" / "cuda",
        PVT_KERNELS_CUDA_ARCHS="75 90",
        PVT_KERNELS_TREAT_AS_ARCH=treat_as,
    )
    if "there is no nvcc on PATH" in words(run.stdout):
        pytest.skip("no nvcc is installed here")
    assert run.returncode == 0, run.stdout
    cmake = importlib.import_module("cmake")
    # one of the sources, to be quick
    compiled = f"CMakeFiles/cuda_{treat_as}.dir/attention_forward.cu.o"
    build = [Path(cmake.CMAKE_BIN_DIR, "cmake"), "--build", tmp_path, "--target", compiled]
    subprocess.run(build, check=True)
    tool = find_cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump on PATH or in triton")
    path = os.pathsep.join([str(Path(tool).parent), os.environ["PATH"]])

    def kernels(*options: str, title: str) -> dict[str, str]:
        """Symbol -> text of the compiled kernels."""
        command = [tool, *options, tmp_path / compiled]
        listing = subprocess.run(
            command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
        ).stdout
        parts = listing.split(title)[1:]
        return {re.match(r"\w+", part)[0]: part for part in parts}

    by_arch = {
        arch: kernels("-sass", "-arch", arch, title="Function : ") for arch in ("sm_75", "sm_90")
    }
    atoms = {f"Sm{treat_as}", f"Simt{treat_as}", *(["Sm70Wmma"] if treat_as == "70" else [])}
    for found in by_arch.values():
        assert {re.search(r"\d(S[a-z]+\d\d(Wmma)?)", symbol)[1] for symbol in found} == atoms
    # 7.5 has both instructions; 9.0 computes the older one otherwise, but takes its PTX
    for found, expected in (
        (by_arch["sm_75"], machine_instruction),
        (kernels("-ptx", title=".entry "), instruction),
    ):
        pattern = rf"\dSm{treat_as}[EL]"
        multiplying = [text for symbol, text in found.items() if re.search(pattern, symbol)]
        assert len(multiplying) == 3
        assert all(expected in text for text in multiplying)
