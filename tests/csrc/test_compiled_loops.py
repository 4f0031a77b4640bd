"""What compilers make of the products: in the products' loops no sum may leave its register.

Compilers spill silently. A sum in memory makes every step of its loop wait for a store to come
back, which costs half of the speed and changes no result.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ARITHMETIC = ROOT / "csrc" / "cpu" / "arithmetic.h"
COMPILERS = ("g++", "clang++")
# together they hold every form of the product: tiles by rows and by columns, written, added,
# rescaled, in chains, and of few columns
SOURCES = (
    "attention_forward.cpp",
    "multi_head_attention_backward.cpp",
    "feed_forward_forward.cpp",
    "feed_forward_backward.cpp",
)


@dataclass(frozen=True)
class Bounds:
    """What a code path's loops reach.

    Attributes:
        sums: of the widest loop, rows times vectors of a register block.
        widest: the share of products among the vector instructions of those loops, at least.
        share: the same for all loops, down to those of a single row and vector.
    """

    sums: int
    widest: float
    share: float


# a product is one instruction of 20 for 12 sums: 12 products, 6 broadcasts, 2 loads; of 34 for 24.
# Without fused instructions it is two, and a broadcast is two more.
BOUNDS = {
    "portable": Bounds(12, 0.27, 0.19),
    "avx2": Bounds(12, 0.6, 0.4),
    "avx512": Bounds(24, 0.7, 0.4),
    "avx512_bf16": Bounds(24, 0.7, 0.33),
}


# Of AMX: sums of the widest loop in tiles, and the share of products among the tiles' instructions.
# Two by two tiles take two loads of each factor, four in a column four and one, a single one two.
TILES = Bounds(4, 4 / 9, 1 / 3)


@dataclass(frozen=True)
class Instruction:
    name: str
    operands: tuple[str, ...]
    # whether it comes of multiply_add()
    product: bool

    @property
    def vector(self) -> bool:
        return any(re.search(r"%[xyz]mm", operand) for operand in self.operands)

    @property
    def written(self) -> str | None:
        """The register that it writes, if it is one."""
        if self.name.startswith(("cmp", "test", "j", "prefetch")) or not self.operands:
            return None
        return wide(self.operands[-1]) if self.operands[-1].startswith("%") else None

    @property
    def stores(self) -> bool:
        return self.vector and "(" in self.operands[-1]

    @property
    def reads(self) -> str | None:
        """The address that a vector instruction reads."""
        return next((o for o in self.operands[:-1] if "(" in o), None) if self.vector else None


def wide(register: str) -> str:
    """The widest name of a register, by which two instructions' can be compared."""
    register = re.sub(r"^%[xyz]mm", "%zmm", register)
    if legacy := re.fullmatch(r"%[re]?([abcd]x|[sd]i|[sb]p)", register):
        return f"%r{legacy[1]}"
    return re.sub(r"^(%r\d+)[dwb]$", r"\1", register)


@dataclass
class Loop:
    function: str
    body: list[Instruction]

    @functools.cached_property
    def sums(self) -> set[str]:
        """The registers that products add to and nothing else in the loop writes."""
        writers: dict[str, list[bool]] = {}
        for i in self.body:
            if i.vector and i.written:
                writers.setdefault(i.written, []).append(adds_product(i))
        return {register for register, adding in writers.items() if all(adding)}

    @property
    def share(self) -> float:
        return sum(map(adds_product, self.body)) / sum(i.vector for i in self.body)

    def sums_in_memory(self) -> list[Instruction]:
        """Stores of sums, to an address that the loop also reads."""
        added = {i.written for i in self.body if adds_product(i)}
        read = {i.reads for i in self.body}
        return [
            i
            for i in self.body
            if i.stores and wide(i.operands[-2]) in added and i.operands[-1] in read
        ]

    def spills(self) -> list[Instruction]:
        """All stores, and all reads that bring the same in every step: what products need of
        memory moves on along their depth."""
        moving = {i.written for i in self.body}
        return [
            i
            for i in self.body
            if i.stores
            or (i.reads and not {wide(r) for r in re.findall(r"%\w+", i.reads)} & moving)
        ]

    def __str__(self) -> str:
        lines = (f"    {i.name} {', '.join(i.operands)}" for i in self.body)
        return "\n".join([self.function, *lines])


def adds_product(instruction: Instruction) -> bool:
    # of two instructions without FMA the addition
    name = re.compile(r"vfn?m(add|sub)\d+ps|vdpbf16ps|v?addps")
    # the bf16 product is an intrinsic, whose line is of its header
    by_line = instruction.product or instruction.name == "vdpbf16ps"
    return by_line and name.fullmatch(instruction.name) is not None


def product_lines() -> range:
    """Where arithmetic.h multiplies and adds floats."""
    lines = ARITHMETIC.read_text().splitlines()
    found = [n for n, line in enumerate(lines, 1) if "Vec multiply_add(Vec sum" in line]
    assert "sum + weight" in lines[found[0] - 1], "multiply_add() is no longer where it was"
    return range(found[0], found[0] + 2)


def innermost_loops(assembly: str) -> list[Loop]:
    """Of AT&T syntax with .loc: from a label to a jump back to it, with no such jump within."""
    lines = product_lines()
    label = re.compile(r"^([.\w$]+):")
    location = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)")
    files = r'^\s*\.file\s+(\d+)\s+.*arithmetic\.h"'
    arithmetic_files = {m[1] for m in re.finditer(files, assembly, re.M)}
    function, product, body = "", False, []
    labels: dict[str, int] = {}
    loops: dict[int, int] = {}
    found: list[Loop] = []

    def end_function() -> None:
        ranges = [range(first, last + 1) for first, last in loops.items()]
        inner = [a for a in ranges if not any(a != b and b[0] in a and b[-1] in a for b in ranges)]
        found.extend(Loop(function, body[a.start : a.stop]) for a in inner)
        labels.clear()
        loops.clear()
        body.clear()

    for line in assembly.splitlines():
        if match := label.match(line):
            if not match[1].startswith(".L"):
                end_function()
                function = match[1]
            labels[match[1]] = len(body)
        elif match := location.match(line):
            product = match[1] in arithmetic_files and int(match[2]) in lines
        elif match := re.match(r"^\s+([a-z]\w+)(?:\s+([^#]*))?", line):
            operands = re.findall(r"(?:[^,(]|\([^)]*\))+", (match[2] or "").strip())
            body.append(Instruction(match[1], tuple(o.strip() for o in operands), product))
            if match[1].startswith("j") and operands and operands[0] in labels:
                loops[labels[operands[0]]] = len(body) - 1
    end_function()
    return found


def product_loops(assembly: str) -> list[Loop]:
    return [loop for loop in innermost_loops(assembly) if loop.sums or loop.sums_in_memory()]


@functools.cache
def compile_commands(compiler: str) -> dict[tuple[str, str], dict[str, str]]:
    """The build's own, by code path and source."""
    cmake = pytest.importorskip("cmake", reason="cmake is not installed here: pip install cmake")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed here")
    beside = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
    ninja = shutil.which("ninja", path=beside)
    if ninja is None:
        pytest.skip("ninja is not installed here: pip install ninja")
    with tempfile.TemporaryDirectory() as folder:
        configure = [
            *(Path(cmake.CMAKE_BIN_DIR, "cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_CXX_COMPILER={shutil.which(compiler)}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        environment = {**os.environ, "PVT_KERNELS_CUDA_ARCHS": "none"}
        subprocess.run(configure, env=environment, check=True, capture_output=True)
        commands = json.loads(Path(folder, "compile_commands.json").read_text())
    found = {}
    for command in commands:
        path = re.search(r"-DPVT_KERNELS_CODE_PATH=(\w+)", command["command"])
        if path:
            found[path[1], Path(command["file"]).name] = command["command"]
    return found


def compile_to_assembly(compiler: str, path: str, source: str) -> str:
    command = shlex.split(compile_commands(compiler)[path, source])
    command[command.index("-o") + 1] = "-"
    # lines of the source, which change nothing of the code
    command[command.index("-c")] = "-S"
    done = subprocess.run([*command, "-g1"], capture_output=True, text=True, check=True)
    return done.stdout


on_x86_64 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason=f"reads x86-64's assembly, and this is {platform.machine()}",
)


@on_x86_64
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("path", BOUNDS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_products_keep_their_sums_in_registers(compiler, path, source):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on PATH")
    loops = product_loops(compile_to_assembly(compiler, path, source))
    bounds = BOUNDS[path]
    for loop in loops:
        assert not loop.spills(), f"{loop.spills()} in\n{loop}"
        assert loop.share >= bounds.share, f"{loop.share:.2f} of the vector instructions of\n{loop}"
    assert max(len(loop.sums) for loop in loops) == bounds.sums
    for loop in loops:
        if len(loop.sums) == bounds.sums:
            assert loop.share >= bounds.widest, f"{loop.share:.2f} of\n{loop}"


@on_x86_64
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_products_in_tiles_only_load_and_multiply(compiler, source):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on PATH")
    loops = innermost_loops(compile_to_assembly(compiler, "amx_bf16", source))
    widest = 0
    for loop in loops:
        tiles = [i for i in loop.body if any("%tmm" in operand for operand in i.operands)]
        products = [i for i in tiles if i.name == "tdpbf16ps"]
        if not products:
            continue
        assert {i.name for i in tiles} == {"tdpbf16ps", "tileloadd"}, loop
        # the sums that it adds to, each once in a step, and of vectors at most a kept address
        assert len({i.operands[-1] for i in products}) == len(products), loop
        assert {i.name for i in loop.body if i.vector} <= {"vmovq"}, loop
        widest = max(widest, len(products))
        assert len(products) / len(tiles) >= TILES.share, loop
        if len(products) == TILES.sums:
            assert len(products) / len(tiles) >= TILES.widest, loop
    assert widest == TILES.sums
