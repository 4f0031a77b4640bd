"""What the compilers make of the kernels: registers, spills, shared memory, tensor cores.

Machine code from nvcc is read out of the package's module; that for sm_70, which nvcc 13 has no
more, is compiled here by NVRTC 12. The table goes to build/compile_matrix.md.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pvt_kernels import _C

from .device import ROOT, SHARED_MEMORY

# those with products, whose occupancy counts
KERNELS = (
    "attention_forward",
    "attention_dq",
    "attention_dk_dv",
    "reduction_product",
    "reduction_dx",
    "reduction_dweight",
)
OTHER_KERNELS = (
    "attention_delta",
    "reduction_normalize",
    "reduction_dz",
    "reduction_sums",
    "fold",
)
REGISTERS = 64 * 1024


@dataclass(frozen=True)
class Arch:
    """Per multiprocessor: threads, bytes of shared memory. Per block: what the system takes."""

    threads: int
    shared: int
    reserved: int


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
ARCHS = {
    70: Arch(2048, 96 * 1024, 0),
    75: Arch(1024, 64 * 1024, 0),
    80: Arch(2048, 164 * 1024, 1024),
    86: Arch(1536, 100 * 1024, 1024),
    89: Arch(1536, 100 * 1024, 1024),
    90: Arch(2048, 228 * 1024, 1024),
    100: Arch(2048, 228 * 1024, 1024),
    120: Arch(1536, 100 * 1024, 1024),
}


@dataclass(frozen=True)
class Compiled:
    arch: int
    kernel: str
    atom: str
    width: int | None
    registers: int

    def blocks(self, threads: int, shared: int) -> int:
        """That a multiprocessor holds."""
        arch = ARCHS[self.arch]
        # a warp's registers are allocated 256 at a time
        warp_registers = math.ceil(self.registers * 32 / 256) * 256
        return min(
            REGISTERS // (warp_registers * threads // 32),
            arch.shared // (shared + arch.reserved),
            arch.threads // threads,
        )


def describe(arch: int, symbol: str, registers: str, stack: str) -> Compiled | None:
    """None for a kernel without products, or for one that is left empty on this architecture."""
    assert stack == "0", f"{symbol} for sm_{arch}: spills, or an array in local memory"
    kernel = re.search(rf"({'|'.join(KERNELS)})_kernel", symbol)
    # the names and their lengths
    atom = re.search(r"\d(Simt\d\d|Sm70Wmma|Sm70|Sm75|Sm80)", symbol)
    if kernel is None or atom is None or int(registers) < 16:
        return None
    name = atom[1]
    if name == "Sm80":
        name += " half" if "6__half" in symbol else " bf16"
    width = re.search(r"Li(\d+)E", symbol)
    return Compiled(
        arch, kernel[1], name, int(width[1]) if width else None, int(registers)
    )


def tool(name: str) -> str:
    """From PATH, or the one that Triton brings."""
    folders = [os.environ["PATH"]]
    if spec := importlib.util.find_spec("triton"):
        folders.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        pytest.skip(f"no {name} on PATH or in triton")
    return path


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def by_nvcc(arch: int) -> list[Compiled]:
    """The kernels in the package's module."""
    if f"sm_{arch}" not in _C.build_info()["cuda_archs"]:
        pytest.skip(
            f"the module has no code for sm_{arch}: built with CUDA {_C.build_info()['cuda']}"
        )
    listing = run(tool("cuobjdump"), "--dump-resource-usage", "-arch", f"sm_{arch}", _C.__file__)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", listing)
    return [c for symbol, *usage in found if (c := describe(arch, symbol, *usage))]


def package_file(path: str) -> Path:
    """In a folder of the packages that NVIDIA has on PyPI."""
    for folder in sys.path:
        if (found := Path(folder, "nvidia", path)).exists():
            return found
    pytest.skip(
        f"nvidia/{path} is not installed here: pip install nvidia-cuda-nvrtc-cu12==12.9.* "
        "nvidia-cuda-runtime-cu12==12.9.* nvidia-cuda-nvcc-cu12==12.9.*"
    )


# the few names of the standard library that the kernels use; NVRTC has no headers of its own
STANDARD_HEADERS = {
    "cstddef": "",
    "cstdint": """
        #pragma once
        namespace std {
        using uint8_t = unsigned char;
        using uint16_t = unsigned short;
        using int32_t = int;
        using uint32_t = unsigned;
        using int64_t = long long;
        using uintptr_t = unsigned long long;
        }
        using namespace std;""",
    "cstring": "",
    "stddef.h": "",
    "stdint.h": "#include <cstdint>",
    "type_traits": """
        #pragma once
        namespace std {
        template <bool, class A, class> struct conditional { using type = A; };
        template <class A, class B> struct conditional<false, A, B> { using type = B; };
        template <bool k, class A, class B> using conditional_t =
            typename conditional<k, A, B>::type;
        template <class, class> constexpr bool is_same_v = false;
        template <class A> constexpr bool is_same_v<A, A> = true;
        }""",
}

SOURCE = """
#include "cuda/arch/simt.cuh"
#include "cuda/arch/sm70.cuh"
#include "cuda/arch/sm70_wmma.cuh"
#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/fold.cuh"
#include "cuda/spatial_reduction_backward.cuh"
#include "cuda/spatial_reduction_forward.cuh"
"""


def strings(values: list[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))


def by_nvrtc() -> tuple[list[Compiled], str]:
    """The kernels for sm_70, and their PTX."""
    libraries = package_file("cuda_nvrtc/lib")
    folders = [package_file("cuda_runtime/include"), package_file("cuda_nvcc/include/crt").parent]
    (builtins,) = libraries.glob("libnvrtc-builtins.so.12.*")
    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(libraries / "libnvrtc.so.12"))
    program = ctypes.c_void_p()
    headers = [strings(list(t)) for t in (STANDARD_HEADERS.values(), STANDARD_HEADERS)]
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), SOURCE.encode(), b"kernels.cu", len(STANDARD_HEADERS), *headers
    )
    assert made == 0
    for atom in ("Simt70", "Sm70", "Sm70Wmma"):
        for kernel in KERNELS + OTHER_KERNELS:
            widths = [", 32", ", 64", ", 128"] if kernel.startswith("attention") else [""]
            for width in widths:
                space = "pvt_kernels::cuda::"
                name = f"{space}{kernel}_kernel<{space}{atom}{width}>"
                assert nvrtc.nvrtcAddNameExpression(program, name.encode()) == 0
    options = [
        "--gpu-architecture=sm_70",
        "--std=c++17",
        "--ptxas-options=-v",
        # launch.h declares host functions; NVRTC compiles no host code
        "--device-as-default-execution-space",
        "-DINFINITY=__int_as_float(0x7f800000)",
        *(f"--include-path={folder}" for folder in (ROOT / "csrc", *folders)),
    ]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
    log, ptx = (text(nvrtc, program, kind) for kind in ("ProgramLog", "PTX"))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert failed == 0, log
    pattern = r"entry function '(\S+)'.*?(\d+) bytes stack frame.*?Used (\d+) registers"
    found = re.findall(pattern, log, re.DOTALL)
    return [c for symbol, stack, regs in found if (c := describe(70, symbol, regs, stack))], ptx


def text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, kind: str) -> str:
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer) == 0
    return buffer.value.decode()


@pytest.fixture(scope="module")
def table():
    rows = [
        "| arch | kernel | atom | head dim | registers | shared memory | threads | blocks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    yield rows
    path = ROOT / "build" / "compile_matrix.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def intended_blocks(c: Compiled) -> int:
    """Two a multiprocessor, but for the widest heads and the 64 KB of compute capability 7.5."""
    return 1 if c.width == 128 or c.arch == 75 else 2


def check(compiled: list[Compiled], all_blocks: dict, table: list[str]) -> None:
    for c in sorted(compiled, key=lambda c: (KERNELS.index(c.kernel), c.atom, c.width or 0)):
        threads, shared = all_blocks[c.kernel, c.atom, c.width]
        blocks = c.blocks(threads, shared)
        facts = (c.kernel, c.atom, c.width or "", c.registers, shared, threads, blocks)
        table.append(f"| sm_{c.arch} | {' | '.join(map(str, facts))} |")
        limit = SHARED_MEMORY[max(arch for arch in SHARED_MEMORY if arch <= c.arch)]
        limit = min(limit, ARCHS[c.arch].shared - ARCHS[c.arch].reserved)
        assert shared <= limit, f"{c}: {shared} bytes of shared memory, of {limit}"
        assert blocks >= intended_blocks(c), f"{c}: {blocks} blocks with {shared} bytes"


@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 120])
def test_code_of_nvcc(device, table, arch):
    compiled = by_nvcc(arch)
    atoms = {"Simt75", "Sm75"} if arch < 80 else {"Simt80", "Sm80 half", "Sm80 bf16"}
    assert {c.atom for c in compiled} == atoms
    assert len(compiled) == len(atoms) * (3 * 3 + 3)
    check(compiled, device.run("simt_cuda.blocks"), table)


@pytest.mark.parametrize(("arch", "instruction"), [(75, "HMMA.1688"), (80, "HMMA.16816")])
def test_tensor_cores_in_the_code_of_nvcc(arch, instruction):
    by_nvcc(arch)
    tool("nvdisasm")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(tool("cuobjdump")).parent), os.environ["PATH"]])
    }
    sass = subprocess.run(
        [tool("cuobjdump"), "-sass", "-arch", f"sm_{arch}", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    with_products = 0
    for function in sass.split("Function : ")[1:]:
        symbol = function.split(maxsplit=1)[0]
        if describe(arch, symbol, "255", "0") and f"4Sm{arch}" in symbol:
            with_products += 1
            assert instruction in function, symbol
    assert with_products == (12 if arch == 75 else 24)


def test_code_for_sm_70(device, table):
    compiled, ptx = by_nvrtc()
    assert len(compiled) == 3 * (3 * 3 + 3)
    check(compiled, device.run("simt_cuda.blocks"), table)
    for entry in ptx.split(".entry ")[1:]:
        symbol = entry.split("(")[0]
        if describe(70, symbol, "255", "0"):
            assert ("wmma.mma.sync" in entry) == ("8Sm70Wmma" in symbol), symbol
            assert ("mma.sync.aligned.m8n8k4" in entry) == ("4Sm70" in symbol), symbol


def test_dk_dv_fills_a_v100_twice(device):
    """800x1216, two images: what their 2, 4, 10 and 16 heads give."""
    device.multiprocessors = 80
    for tokens, heads in ((60800, 1), (15200, 2), (3800, 5), (950, 8)):
        call = device.run(
            "tests.simt.calls.backward_workspace", 2, tokens, 950, heads, 64, "float16"
        )
        rows = math.ceil(2 * heads * tokens / 4) * 4
        splits = (call / 4 - rows) / (2 * 2 * heads * 950 * 64)
        blocks = math.ceil(950 / 64) * splits * 2 * heads
        assert blocks >= 2 * 2 * 80, f"{blocks} blocks, of which a V100 holds 160 at a time"
