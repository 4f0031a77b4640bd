"""Compiles every Triton kernel as it ships for every architecture, without a GPU: make aot.

Fails where a kernel spills registers, needs more shared memory than a block may have, has a loop
that multiplies fp16 or bf16 without tensor cores, or with more of them than the products take;
where a multiprocessor of an A100 or H100 holds fewer blocks than the table of tiles says, or an
H100's fewer than two of attention in fp16 and bf16 with PVT's heads; and where a backward kernel of
PVT's first two stages has fewer blocks than an H100 has multiprocessors. Writes what it found as a
table, which another version of Triton, run on the same checkout, can add its own to.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

# before any kernel is defined: the interpreter's can't be compiled
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from pvt_kernels.backends.triton import MAX_CHANNELS, attention, multi_head_attention
from pvt_kernels.backends.triton.attention import tiles as attention_tiles
from pvt_kernels.backends.triton.attention.tiles import WHOLE_WIDTHS
from pvt_kernels.backends.triton.launch import Gpu, Launch
from pvt_kernels.backends.triton.multi_head_attention import FUSED_TILES
from pvt_kernels.benchmarking.shapes import STAGES, LayerShape, stage_shape
from pvt_kernels.benchmarking.table import wide_console
from pvt_kernels.benchmarking.triton_launches import (
    attention_launches,
    feed_forward_launches,
    fused_launches,
    linear_launches,
    reduction_launches,
)

from . import ptx

SIZE, BATCH = (800, 1216), 2
H100 = Gpu(arch=90, multiprocessors=132)
# name: dtype, and whether PyTorch allows TF32
DTYPES = {
    "fp16": (torch.float16, False),
    "bf16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
LAUNCHES = {
    "attention": attention_launches,
    "multi_head_attention": fused_launches,
    "spatial_reduction": reduction_launches,
    "linear_gradients": linear_launches,
    "feed_forward": feed_forward_launches,
}
# the rest of an op's launches are its backward
FORWARD_LAUNCHES = {
    "attention": 1,
    "multi_head_attention": 1,
    "spatial_reduction": 2,
    "linear_gradients": 0,
    "feed_forward": 4,
}
HALF = ("fp16", "bf16")
# bf16 has fp16's tiles, and its kernels differ from fp16's in the types of their instructions
# alone: of 272 pairs on all architectures 270 took the same shared memory, 259 the same registers
# and none spilled where the other did not. One architecture of each kind of tensor core shows that.
BF16_ARCHS = (80, 90, 100)
PVT_HEAD_DIM = 64
# of every attention kernel with PVT's heads, on an H100
LEAST_RESIDENT = 2
# whose occupancy the tiles' tables have; of the others with the same instructions some have less
# shared memory
TABLE_ARCHS = (80, 90)
PVT_LAYERS = [stage_shape(stage, SIZE, BATCH) for stage in STAGES]
REDUCED = [shape for shape in PVT_LAYERS if shape.sr_ratio > 1]
NARROW = [LayerShape(dim, max(1, dim // PVT_HEAD_DIM), 8, 200, 304, BATCH) for dim in (32, 64, 128)]
OTHER_WIDTHS = [LayerShape(dim, 1, 2, 50, 76, BATCH) for dim in (32, 256, 1024, MAX_CHANNELS)]
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
MAX_FRUGAL_WIDTH = 128
# head dims below their block's, whose loads are masked: one kernel for all of them
MASKED_WIDTHS = {32: 24, 64: 40, 128: 96, 256: 160}
# how many matrix products each turn of a kernel's loops has, all of the same size
PRODUCTS = {
    "attention_forward": 2,
    "attention_dq": 3,
    "attention_dkdv": 4,
    "multi_head_attention": 2,
    "convolution": 1,
    "dweight": 1,
    "dx": 1,
    "linear_gradients": 1,
}
# loops without products: dx passes over its rows for their means first
OTHER_LOOPS = {"dx": 1}


@dataclass(frozen=True)
class Multiprocessor:
    """CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; in bytes."""

    block_shared: int
    shared: int
    warps: int
    blocks: int


KB = 1024
MULTIPROCESSORS = {
    80: Multiprocessor(163 * KB, 164 * KB, 64, 32),
    86: Multiprocessor(99 * KB, 100 * KB, 48, 16),
    89: Multiprocessor(99 * KB, 100 * KB, 48, 24),
    90: Multiprocessor(227 * KB, 228 * KB, 64, 32),
    100: Multiprocessor(227 * KB, 228 * KB, 64, 32),
    120: Multiprocessor(99 * KB, 100 * KB, 48, 24),
}
# Triton writes the same PTX for both but for the target's name, which is compared for PVT's fp16
# kernels; the others are assembled from the first's
SAME_PTX = {89: 86}
REGISTERS, REGISTER_UNIT, RESERVED_SHARED = 65536, 256, KB
TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Case:
    """One kernel to compile: picklable, so that another process can find its launch again."""

    arch: int
    dtype: str
    op: str  # of LAUNCHES
    stage: LayerShape
    index: int  # among the op's launches, forward then backward
    tile: attention_tiles.Tile | None = None  # of the table, instead of the shape's

    @property
    def head_dim(self) -> int:
        return self.stage.dim // self.stage.heads


@dataclass(frozen=True)
class Compiled:
    case: Case
    name: str
    warps: int
    constants: dict[str, int | str]
    registers: int
    stack: int
    shared: int
    resident: int
    assumed: int  # of the tile's table
    instruction: str
    work: tuple[float, ...]
    scratch: int

    @property
    def least_resident(self) -> int:
        # others are as many as they are
        counted = self.name in PRODUCTS or self.case.op == "feed_forward"
        tabled = self.case.arch in TABLE_ARCHS and counted
        least = self.assumed if tabled else 1
        attends = "BLOCK_D" in self.constants
        pvt = self.case.head_dim == PVT_HEAD_DIM and self.case.dtype in HALF
        return max(least, LEAST_RESIDENT) if attends and pvt and self.case.arch == 90 else least

    @property
    def faults(self) -> list[str]:
        faults = []
        if self.stack:
            faults.append(f"{self.stack} bytes of spilled registers")
        limit = MULTIPROCESSORS[self.case.arch].block_shared
        if self.shared > limit:
            faults.append(f"{self.shared} bytes of shared memory, above {limit}")
        if self.resident < self.least_resident:
            faults.append(f"{self.resident} blocks a multiprocessor, below {self.least_resident}")
        if self.scratch:
            faults.append(f"{self.scratch} bytes of device memory that PyTorch does not allocate")
        if self.work and self.case.dtype != "fp32":
            if min(self.work) < 1:
                faults.append(f"a loop does {min(self.work):.0%} of its products on tensor cores")
            # wider heads leave a warp too few registers for rows of its own
            narrow = self.constants.get("BLOCK_D", 0) <= MAX_FRUGAL_WIDTH
            if max(self.work) > 1 and narrow and self.case.dtype in HALF:
                faults.append(f"a loop does its products {max(self.work):.2f} times")
        return faults


def launches(case: Case, gpu: Gpu) -> list[Launch]:
    """What the op launches for the case's shape on `gpu`, forward and backward."""
    dtype, tf32 = DTYPES[case.dtype]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return LAUNCHES[case.op](case.stage, dtype, gpu)


def cases(archs: list[int], dtypes: list[str]) -> Iterator[Case]:
    """Every kernel x tile x architecture x dtype, in shapes that PVT has or could have."""
    for arch, dtype in product(archs, dtypes):
        if dtype == "bf16" and arch not in BF16_ARCHS:
            continue
        gpu = Gpu(arch, H100.multiprocessors)
        torch.backends.cuda.matmul.allow_tf32 = DTYPES[dtype][1]
        unit = attention_tiles.matrix_unit(gpu, DTYPES[dtype][0])
        for index, kernel in enumerate(("forward", "dq", "dkdv")):
            for block, tiles in attention_tiles.TILES[kernel][unit].items():
                whole = [(block, tile) for tile in tiles if block in WHOLE_WIDTHS]
                for width, tile in [*whole, (MASKED_WIDTHS[block], tiles[-1])]:
                    shape = LayerShape(2 * width, 2, 8, 200, 304, BATCH)
                    yield Case(arch, dtype, "attention", shape, index, tile)
        for (C, head_dim), tiles in FUSED_TILES.get(unit, {}).items():
            shape = LayerShape(C, C // head_dim, 8, 200, 304, BATCH)
            for tile in tiles:
                yield Case(arch, dtype, "multi_head_attention", shape, 0, tile)
        seen = set()
        for op, shape, names in [
            *(("spatial_reduction", shape, None) for shape in REDUCED),
            # the kernel whose block is as wide as the layer; and folds of many parts and of few
            *(("spatial_reduction", shape, ("norm",)) for shape in OTHER_WIDTHS),
            *(("attention", shape, ("fold",)) for shape in PVT_LAYERS),
            *(("linear_gradients", shape, None) for shape in NARROW),
            ("feed_forward", PVT_LAYERS[0], None),
        ]:
            case = Case(arch, dtype, op, shape, 0)
            for index, launch in enumerate(launches(case, gpu)):
                name = launch.kernel.fn.__name__.removesuffix("_kernel")
                variant = _variant(name, launch.constants)
                wanted = names is None or name in names
                # TF32 is only of products
                if wanted and variant not in seen and (name in PRODUCTS or dtype != "tf32"):
                    seen.add(variant)
                    yield replace(case, index=index)


def launch_of(case: Case) -> Launch:
    # None: the shape's own
    attention.tile_of = (lambda *_: case.tile) if case.tile else attention_tiles.tile_of
    multi_head_attention.filling = (lambda *_: case.tile) if case.tile else attention_tiles.filling
    return launches(case, Gpu(case.arch, H100.multiprocessors))[case.index]


def specialization(launch: Launch) -> tuple[dict[str, str], dict]:
    """The arguments' types, and what is known of them: addresses are multiples of 16 bytes."""
    signature, alignment = {}, {}
    tensors = launch.inputs | launch.outputs
    for i, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name] = "constexpr"
        elif name in tensors:
            signature[name] = POINTERS[tensors[name].dtype]
            alignment[i,] = [["tt.divisibility", 16]]
        elif isinstance(launch.numbers[name], float):
            signature[name] = "fp32"
        else:
            signature[name] = parameter.annotation_type
    return signature, alignment


def compile_case(case: Case) -> Compiled:
    launch = launch_of(case)
    signature, alignment = specialization(launch)
    source = ASTSource(launch.kernel, signature, launch.constants, alignment)
    arch = SAME_PTX.get(case.arch, case.arch)
    compiled = _compile(source, arch, launch)
    cubin, text = compiled.asm["cubin"], compiled.asm["ptx"]
    if arch != case.arch:
        text = text.replace(f"sm_{arch}", f"sm_{case.arch}")
        cubin = _assemble(text, case.arch)
        if case.dtype == "fp16" and case.head_dim == PVT_HEAD_DIM:
            own = _compile(source, case.arch, launch).asm["ptx"]
            assert own == text, f"the PTX for sm_{case.arch} is not that for sm_{arch}"
    registers, stack = _resources(cubin)
    shared = compiled.metadata.shared
    columns = getattr(compiled.metadata, "tmem_size", 0) or 0
    name = launch.kernel.fn.__name__.removesuffix("_kernel")
    return Compiled(
        case,
        name,
        launch.warps,
        launch.constants,
        registers,
        stack,
        shared,
        _resident(MULTIPROCESSORS[case.arch], launch.warps, registers, shared, columns),
        launch.resident,
        ptx.instruction(text),
        _work(name, text, launch) if name in PRODUCTS else (),
        compiled.metadata.global_scratch_size + compiled.metadata.profile_scratch_size,
    )


def _compile(source: ASTSource, arch: int, launch: Launch) -> CompiledKernel:
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "maxnreg": launch.maxnreg,
    }
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _assemble(text: str, arch: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text)
        subprocess.run([TOOLS / "ptxas", f"-arch=sm_{arch}", source, "-o", cubin], check=True)
        return cubin.read_bytes()


def _work(name: str, text: str, launch: Launch) -> tuple[float, ...]:
    """What tensor cores do in every innermost loop, as multiples of its products.

    The whole kernel counts where there is no loop: its sum is as long as one step.
    """
    constants = launch.constants
    depth = constants.get("BLOCK_D") or constants["BLOCK_K"]
    if name == "linear_gradients":
        sides = (constants["BLOCK_C"], constants["BLOCK_C"], constants["BLOCK_K"])
    else:
        sides = (constants["BLOCK_M"], constants["BLOCK_N"], depth)
    needed = PRODUCTS[name] * math.prod(sides)
    loops = ptx.innermost_loops(text) or [None]
    work = [ptx.multiply_adds(text, launch.warps, lines) / needed for lines in loops]
    if len(work) > OTHER_LOOPS.get(name, 0):
        work = sorted(work)[OTHER_LOOPS.get(name, 0) :]
    return tuple(work)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, where spilled registers go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _resident(device: Multiprocessor, warps: int, registers: int, shared: int, columns: int) -> int:
    """Blocks that one multiprocessor holds at once: its occupancy."""
    of_a_warp = triton.cdiv(registers * 32, REGISTER_UNIT) * REGISTER_UNIT
    limits = [
        device.blocks,
        device.warps // warps,
        REGISTERS // of_a_warp // warps,
        device.shared // (shared + RESERVED_SHARED),
    ]
    if columns:
        limits.append(TENSOR_MEMORY_COLUMNS // columns)
    return min(limits)


def waves(compiled: list[Compiled], stages: tuple[int, ...]) -> list[tuple[str, ...]]:
    """Rows of WAVE_COLUMNS for fp16 on an H100, at 800x1216, batch 2."""
    resident = {_variant(c.name, c.constants): c.resident for c in compiled if _is_h100_fp16(c)}
    rows = []
    for stage in stages:
        shape = stage_shape(stage, SIZE, BATCH)
        for op in LAUNCHES:
            if op == "spatial_reduction" and shape.sr_ratio == 1:
                continue
            for index, launch in enumerate(launches(Case(90, "fp16", op, shape, 0), H100)):
                name = launch.kernel.fn.__name__.removesuffix("_kernel")
                held = resident[_variant(name, launch.constants)]
                count = launch.blocks / (held * H100.multiprocessors)
                direction = "forward" if index < FORWARD_LAUNCHES[op] else "backward"
                rows.append(
                    (str(stage), name, direction, f"{launch.blocks}", f"{held}", f"{count:.1f}")
                )
    return rows


def _is_h100_fp16(compiled: Compiled) -> bool:
    return compiled.case.arch == H100.arch and compiled.case.dtype == "fp16"


def _variant(name: str, constants: dict[str, int | str]) -> tuple:
    """What of a kernel's constants makes another binary, as far as its resources go.

    R never does, and C where the blocks are the same only for dx, which has no loop where all
    channels fit in one step.
    """
    differs = {k: v for k, v in constants.items() if k not in ("C", "R")}
    looped = name == "dx" and constants["C"] > constants["BLOCK_K"]
    return name, looped, *differs.items()


def rows_of(compiled: list[Compiled]) -> Iterator[tuple[str, ...]]:
    for c in compiled:
        constants = c.constants
        width = f"d = {c.case.head_dim}" if "WHOLE" in constants else f"C = {c.case.stage.dim}"
        blocks = [str(v) for k, v in constants.items() if k.startswith("BLOCK") and k != "BLOCK_D"]
        yield (
            c.name,
            f"sm_{c.case.arch}",
            c.case.dtype,
            width,
            " x ".join(blocks),
            str(c.warps),
            str(c.registers),
            str(c.stack),
            str(c.shared),
            str(c.resident),
            c.instruction or "-",
            " ".join(f"{work:.2f}" for work in c.work) if c.instruction else "-",
        )


COLUMNS = (
    *("kernel", "architecture", "dtype", "width", "block", "warps", "registers"),
    *(
        "spilled bytes",
        "shared memory",
        "blocks a multiprocessor",
        "tensor cores",
        "times its loops' products",
    ),
)
WAVE_COLUMNS = ("stage", "kernel", "direction", "blocks", "blocks a multiprocessor", "waves")


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(console: Console, title: str, columns: tuple[str, ...], rows: list) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.aot", description=__doc__)
    parser.add_argument("--archs", nargs="+", type=int, choices=MULTIPROCESSORS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--head-dims", nargs="+", type=int, choices=MASKED_WIDTHS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--output", type=Path, help="where to write the table, as Markdown")
    parser.add_argument("--append", action="store_true", help="to what another version wrote there")
    options = parser.parse_args()
    console = wide_console()
    # of this checkout alone: a binary's PTX has the path of its source, and sm_89's is compared
    os.environ["TRITON_CACHE_DIR"] = str(Path("build/triton-cache").resolve())

    wanted = list(cases(options.archs or list(MULTIPROCESSORS), options.dtypes or list(DTYPES)))
    if options.head_dims:
        wanted = [case for case in wanted if case.head_dim in options.head_dims]
    compiled, faults = [], []
    # a fork has PyTorch and Triton imported already
    with ProcessPoolExecutor(options.jobs, get_context("fork")) as pool:
        futures = [(case, pool.submit(compile_case, case)) for case in wanted]
        for case, future in futures:
            try:
                compiled.append(future.result())
            except Exception as error:
                faults.append(f"{case}: {type(error).__name__}: {error}")
    faults += [f"{c.case}, {c.name}: {fault}" for c in compiled for fault in c.faults]
    rows = list(rows_of(compiled))
    print_table(console, f"Triton {triton.__version__}", COLUMNS, rows)
    text = f"## Triton {triton.__version__}\n\n" + markdown(COLUMNS, rows)
    # waves need what a multiprocessor holds of every kernel
    if not faults and any(_is_h100_fp16(c) for c in compiled):
        wave_rows = waves(compiled, tuple(STAGES))
        title = f"fp16 on an H100 at {SIZE[0]}x{SIZE[1]}, batch {BATCH}"
        print_table(console, title, WAVE_COLUMNS, wave_rows)
        text += f"\n### Blocks: {title}\n\n" + markdown(WAVE_COLUMNS, wave_rows)
        faults += [
            f"stage {stage}, {name}: {blocks} blocks for {H100.multiprocessors} multiprocessors"
            for stage, name, direction, blocks, _, _ in wave_rows
            if direction == "backward" and int(stage) <= 2 and int(blocks) < H100.multiprocessors
        ]
    if options.output:
        before = options.output.read_text() if options.append else "# Triton kernels as compiled\n"
        options.output.write_text(f"{before}\n{text}")
    for fault in faults:
        console.print(fault, style="red", markup=False, highlight=False)
    console.print(f"{len(wanted)} compiled, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
