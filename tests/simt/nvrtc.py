"""Compiles the kernels with NVRTC, NVIDIA's compiler as a library, which PyPI has."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .device import ROOT

# the few names of the standard library that the kernels use; NVRTC has no headers of its own
STANDARD_HEADERS = {
    "cfloat": "#define FLT_MIN 1.17549435e-38f",
    "cstddef": "",
    "cstdint": """
        #pragma once
        namespace std {
        using uint8_t = unsigned char;
        using uint16_t = unsigned short;
        using int32_t = int;
        using uint32_t = unsigned;
        using int64_t = long long;
        using uint64_t = unsigned long long;
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
#include "cuda/arch/sm75.cuh"
#include "cuda/arch/sm80.cuh"
#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_joint_backward.cuh"
#include "cuda/feed_forward.cuh"
#include "cuda/fold.cuh"
#include "cuda/spatial_reduction_backward.cuh"
#include "cuda/spatial_reduction_forward.cuh"
"""

# how PyPI's packages end, and where they are looked for: those of two versions share file names
TOOLKITS = {
    "12.9": ("cu12==12.9.*", None),
    "11.8": ("cu11==11.8.89", Path(sys.prefix, "cuda-11.8")),
}


def toolkit_folder(version: str) -> Path:
    """Where the packages of that version have nvidia/cuda_nvrtc and the headers; skips without."""
    packages, folder = TOOLKITS[version]
    parts = ("nvrtc", "runtime", "nvcc")
    for place in [folder] if folder else map(Path, sys.path):
        if all((place / "nvidia" / f"cuda_{part}").exists() for part in parts):
            return place / "nvidia"
    target = f"--no-deps --target {folder} " if folder else ""
    names = " ".join(f"nvidia-cuda-{part}-{packages}" for part in parts)
    pytest.skip(f"CUDA {version} is not installed here: pip install {target}{names}")


@dataclass(frozen=True)
class Code:
    """What the compiler made for an architecture.

    Attributes:
        usage: (symbol, bytes of stack, registers) of each kernel.
    """

    usage: list[tuple[str, ...]]
    ptx: str
    cubin: bytes


def compile_kernels(version: str, arch: int, names: list[str]) -> Code:
    """Compiles instances of kernels, such as "fold_kernel<pvt_kernels::cuda::Simt70>"."""
    folder = toolkit_folder(version)
    # NVRTC looks for its other half by name, and finds it loaded
    (builtins,) = (folder / "cuda_nvrtc" / "lib").glob("libnvrtc-builtins.so.*")
    (library,) = (folder / "cuda_nvrtc" / "lib").glob("libnvrtc.so.*")
    ctypes.CDLL(str(builtins))
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    headers = [strings(list(t)) for t in (STANDARD_HEADERS.values(), STANDARD_HEADERS)]
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), SOURCE.encode(), b"kernels.cu", len(STANDARD_HEADERS), *headers
    )
    assert made == 0
    for name in names:
        expression = f"pvt_kernels::cuda::{name}".encode()
        assert nvrtc.nvrtcAddNameExpression(program, expression) == 0
    own = [folder / f"cuda_{part}" / "include" for part in ("runtime", "nvcc")]
    options = [
        f"--gpu-architecture=sm_{arch}",
        "--std=c++17",
        "--ptxas-options=-v",
        # launch.h declares host functions; NVRTC compiles no host code
        "--device-as-default-execution-space",
        "-DINFINITY=__int_as_float(0x7f800000)",
        *(f"--include-path={include}" for include in (ROOT / "csrc", *own)),
    ]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
    log = contents(nvrtc, program, "ProgramLog").decode()
    assert failed == 0, log
    ptx, cubin = (contents(nvrtc, program, kind) for kind in ("PTX", "CUBIN"))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    pattern = r"entry function '(\S+)'.*?(\d+) bytes stack frame.*?Used (\d+) registers"
    return Code(re.findall(pattern, log, re.DOTALL), ptx.decode(), cubin)


def strings(values: list[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))


def contents(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer) == 0
    return buffer.raw
