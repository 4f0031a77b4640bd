"""Loops of a kernel in PTX, and how much of their arithmetic the tensor cores do.

Shapes of instructions are those of the PTX ISA, sections "Warp Level Matrix Multiply-Accumulate
Instructions", "Asynchronous Warpgroup Level Matrix ..." and "TensorCore 5th Generation Family
Instructions" with its table of the instruction descriptor for .kind::f16 and .kind::tf32.
"""

from __future__ import annotations

import re

# of the compiler; those of inline assembly, such as a wait on a barrier, have no dollar sign
LABEL = re.compile(r"^(\$\w+):")
BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+)\s*;")
CONSTANT = re.compile(r"\bmov\.[bu]32\s+(%r\d+), (\d+);")
MMA = re.compile(r"\b(?:mma\.sync|(wgmma)\.mma_async)[\w.]*?\.m(\d+)n(\d+)k(\d+)\.")
TCGEN05 = re.compile(
    r"\btcgen05\.mma\.cta_group::1\.kind::(f16|tf32)\s+\[[^]]+\], [^,]+, [^,]+, (%r\d+),"
)
NAME = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
WARPS_OF_A_GROUP = 4
TCGEN05_DEPTH = {"f16": 16, "tf32": 8}


def instruction(ptx: str) -> str:
    """The kind of tensor-core instruction, or an empty string."""
    found = NAME.search(ptx)
    return found[0] if found else ""


def innermost_loops(ptx: str) -> list[range]:
    """The lines of every loop that has no other within."""
    loops: dict[int, int] = {}  # from a loop's first line to its last
    labels: dict[str, int] = {}
    for number, line in enumerate(ptx.splitlines()):
        if label := LABEL.match(line):
            labels[label[1]] = number
        # back to a line above: several branches to the same one are one loop
        if (branch := BRANCH.search(line)) and branch[1] in labels:
            loops[labels[branch[1]]] = number
    bodies = [range(first, last + 1) for first, last in loops.items()]
    return [a for a in bodies if not any(a != b and b[0] in a and b[-1] in a for b in bodies)]


def multiply_adds(ptx: str, warps: int, lines: range | None = None) -> int:
    """Multiply-adds that a block's tensor cores do, once through these lines or through all."""
    text = ptx.splitlines()
    constants = dict(CONSTANT.findall(ptx))
    total = 0
    for line in text if lines is None else text[lines.start : lines.stop]:
        if found := MMA.search(line):
            group, *shape = found.groups()
            m, n, k = map(int, shape)
            # every warp, or every group of four, issues the instruction on numbers of its own
            total += m * n * k * (warps // WARPS_OF_A_GROUP if group else warps)
        elif found := TCGEN05.search(line):
            kind, register = found.groups()
            # one thread issues it for the block
            descriptor = int(constants[register])
            m, n = (descriptor >> 24 & 0x1F) * 16, (descriptor >> 17 & 0x3F) * 8
            total += m * n * TCGEN05_DEPTH[kind]
        elif NAME.search(line):
            raise ValueError(f"a tensor-core instruction of unknown shape: {line.strip()}")
    return total
