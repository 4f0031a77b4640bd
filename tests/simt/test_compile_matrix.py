"""What the compilers make of the kernels: registers, spills, shared memory, tensor cores.

Machine code from nvcc is read out of the package's module; that for sm_70, which nvcc 13 has no
more, is compiled here by NVRTC 12. The table goes to build/compile_matrix.md.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pvt_kernels import _C
from pvt_kernels.benchmarking import cuda_launches
from pvt_kernels.benchmarking.shapes import stage_shape

from .device import ROOT, SHARED_MEMORY
from .nvrtc import compile_kernels

# those with products, whose occupancy counts
KERNELS = (
    "attention_forward",
    "attention_dq",
    "attention_dk_dv",
    "attention_dq_dk_dv",
    "spatial_reduction_product",
    "spatial_reduction_dx",
    "spatial_reduction_dweight",
)
# of the feed-forward: each with a ReLU before the convolution and without, but for the last
HIDDEN_KERNELS = ("hidden_forward", "hidden_dc", "hidden_dh")
HIDDEN_BLOCKS = 3
OTHER_KERNELS = (
    "hidden_plain",
    "spatial_reduction_normalize",
    "spatial_reduction_dz",
    "spatial_reduction_sums",
    "fold",
)
SPACE = "pvt_kernels::cuda::"
WIDTHS = (32, 64, 128)
REGISTERS = 64 * 1024


def kernels(atom: str, width: int | None = None) -> list[str]:
    """With products: the attention's for a head dim, or those that have none."""
    if width is None:
        return [kernel for kernel in KERNELS if not kernel.startswith("attention")]
    # fp32 has dq, dk and dv in one kernel up to 64
    joint = atom.startswith("Simt") and width <= 64
    backward = ["attention_dq_dk_dv"] if joint else ["attention_dq", "attention_dk_dv"]
    return ["attention_forward", *backward]


def expected(atoms: set[str]) -> int:
    return sum(len(kernels(atom, width)) for atom in atoms for width in (None, *WIDTHS))


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

    def blocks(self, gpu: int, threads: int, shared: int) -> int:
        """That a multiprocessor of such a GPU holds."""
        arch = ARCHS[gpu]
        # a warp's registers are allocated 256 at a time
        warp_registers = math.ceil(self.registers * 32 / 256) * 256
        return min(
            REGISTERS // (warp_registers * threads // 32),
            arch.shared // max(shared + arch.reserved, 1),
            arch.threads // threads,
        )


def describe(arch: int, symbol: str, registers: str, stack: str) -> Compiled | None:
    """None for a kernel without products."""
    assert stack == "0", f"{symbol} for sm_{arch}: spills, or an array in local memory"
    kernel = re.search(rf"({'|'.join(KERNELS)})_kernel", symbol)
    # the names and their lengths
    atom = re.search(r"\d(Simt\d\d|Sm70Wmma|Sm70|Sm75|Sm80)", symbol)
    if kernel is None or atom is None:
        return None
    name = atom[1]
    if name == "Sm80":
        name += " half" if "6__half" in symbol else " bf16"
    width = re.search(r"Li(\d+)E", symbol)
    return Compiled(arch, kernel[1], name, int(width[1]) if width else None, int(registers))


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


def code_for(gpu: int) -> int:
    """The machine code in the package's module that such a GPU runs: of its generation."""
    build = _C.build_info()
    held = [int(name[3:]) for name in build["cuda_archs"] if name.startswith("sm_")]
    run = [arch for arch in held if 75 <= arch <= gpu and arch // 10 == gpu // 10]
    if not run:
        names = ", ".join(build["cuda_archs"]) or build["cuda_missing"]
        pytest.skip(f"the module has no machine code that sm_{gpu} runs: {names}")
    return max(run)


def by_nvcc(arch: int) -> list[Compiled]:
    """The kernels in the package's module."""
    listing = run(tool("cuobjdump"), "--dump-resource-usage", "-arch", f"sm_{arch}", _C.__file__)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", listing)
    return [c for symbol, *usage in found if (c := describe(arch, symbol, *usage))]


@pytest.fixture(scope="module")
def table():
    rows = [
        f"# CUDA kernels as compiled by nvcc {_C.build_info()['cuda']}, for sm_70 by NVRTC 12.9",
        "",
        "Registers of a thread; dynamic shared memory (bytes) and threads of a block; blocks that",
        "a multiprocessor holds. A GPU runs machine code for an older one of its generation.",
        "",
        "| GPU | code | kernel | atom | head dim | registers | shared memory | threads | blocks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    yield rows
    path = ROOT / "build" / "compile_matrix.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def instances(atoms: list[str], widths: tuple[int, ...]) -> list[str]:
    """Of every kernel, as C++ writes them."""
    names = []
    for atom in atoms:
        names += [f"{kernel}_kernel<{SPACE}{atom}>" for kernel in [*kernels(atom), *OTHER_KERNELS]]
        for width in widths:
            of_width = kernels(atom, width)
            if "attention_dq_dk_dv" in of_width:
                of_width.append("attention_delta")
            names += [f"{kernel}_kernel<{SPACE}{atom}, {width}>" for kernel in of_width]
    return names


def hidden_instances(atoms: list[str]) -> list[str]:
    """Of the feed-forward's kernels with a convolution."""
    return [
        f"{kernel}_kernel<{SPACE}{atom}, {relu}>"
        for atom in atoms
        for kernel in HIDDEN_KERNELS
        for relu in ("false", "true")
    ]


def intended_blocks(c: Compiled) -> int:
    """Two a multiprocessor, but for the widest heads, and fp32 in the 64 KB of 7.5.

    Of a product whose depth is split three, as csrc/cuda/product_config.h has it.
    """
    if c.kernel in ("spatial_reduction_product", "spatial_reduction_dweight"):
        return 3
    return 1 if c.width == 128 or (c.width and c.atom == "Simt75") else 2


def check(gpu: int, compiled: list[Compiled], all_blocks: dict, table: list[str]) -> None:
    for c in sorted(compiled, key=lambda c: (KERNELS.index(c.kernel), c.atom, c.width or 0)):
        threads, shared = all_blocks[c.kernel, c.atom, c.width]
        blocks = c.blocks(gpu, threads, shared)
        facts = (c.kernel, c.atom, c.width or "", c.registers, shared, threads, blocks)
        table.append(f"| {gpu / 10} | sm_{c.arch} | {' | '.join(map(str, facts))} |")
        limit = SHARED_MEMORY[max(arch for arch in SHARED_MEMORY if arch <= gpu)]
        limit = min(limit, ARCHS[gpu].shared - ARCHS[gpu].reserved)
        assert shared <= limit, f"{c}: {shared} bytes of shared memory, of {limit}"
        assert blocks >= intended_blocks(c), f"{c}: {blocks} blocks with {shared} bytes"


@pytest.mark.parametrize("gpu", [75, 80, 86, 89, 90, 100, 120])
def test_code_of_nvcc(device, table, gpu):
    arch = code_for(gpu)
    compiled = by_nvcc(arch)
    atoms = {"Simt75", "Sm75"} if arch < 80 else {"Simt80", "Sm80 half", "Sm80 bf16"}
    assert {c.atom for c in compiled} == atoms
    assert len(compiled) == expected(atoms)
    check(gpu, compiled, device.run("simt_cuda.blocks"), table)


@pytest.mark.parametrize(("gpu", "instruction"), [(75, "HMMA.1688"), (80, "HMMA.16816")])
def test_tensor_cores_in_the_code_of_nvcc(gpu, instruction):
    arch = code_for(gpu)
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
    atoms = ["Simt70", "Sm70", "Sm70Wmma"]
    names = instances(atoms, WIDTHS)
    names += hidden_instances(["Simt70", "Sm70"])
    code = compile_kernels("12.9", 70, names)
    assert len(code.usage) == len(names)
    compiled = [c for symbol, stack, regs in code.usage if (c := describe(70, symbol, regs, stack))]
    assert len(compiled) == expected(set(atoms))
    check(70, compiled, device.run("simt_cuda.blocks"), table)
    for symbol, _, registers in code.usage:
        if "hidden_" in symbol:
            hidden = Compiled(70, "hidden", "", None, int(registers))
            assert hidden.blocks(70, threads=128, shared=0) >= HIDDEN_BLOCKS, symbol
    for entry in code.ptx.split(".entry ")[1:]:
        symbol = entry.split("(")[0]
        if describe(70, symbol, "255", "0"):
            assert ("wmma.mma.sync" in entry) == ("8Sm70Wmma" in symbol), symbol
            assert ("mma.sync.aligned.m8n8k4" in entry) == ("4Sm70" in symbol), symbol


@pytest.mark.parametrize(
    ("arch", "atoms"),
    [
        pytest.param(70, ["Sm70", "Sm70Wmma"], marks=pytest.mark.thorough),
        pytest.param(80, ["Sm80<half>"], marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_the_oldest_cuda_compiles_the_kernels(arch, atoms):
    names = instances(atoms, (64,)) + hidden_instances(atoms)
    assert len(compile_kernels("11.8", arch, names).usage) == len(names)


# rounds of blocks times the steps of a block, each of 128 keys and 32 queries
@pytest.mark.parametrize(("stage", "steps"), [(1, 190), (2, 95), (3, 60), (4, 30)])
def test_dk_dv_keeps_a_v100_evenly_busy(device, stage, steps):
    device.arch, device.multiprocessors = 70, 80
    shape = stage_shape(stage, (800, 1216), batch=2)
    sizes = (shape.batch, shape.queries, shape.keys, shape.heads, 64)
    splits = device.run("tests.simt.calls.dk_dv_splits", *sizes, "float16")
    tiles, all_steps = math.ceil(shape.keys / 128) * 2 * shape.heads, math.ceil(shape.queries / 32)
    counted = cuda_launches.blocks_of_a_layer(shape, torch.float16, 80)["attention_dkdv"]
    assert counted == (tiles * splits, 2)
    taken = math.ceil(tiles * splits / 160) * math.ceil(all_steps / splits)
    assert taken == steps
    assert taken <= 1.25 * tiles * all_steps / 160, "what 160 blocks at a time take at least"
