"""Weighs the main loops of kernels compiled for sm_70, by the rules that bind on Volta.

Each of a multiprocessor's four sub-partitions issues one instruction a clock; HMMA and FFMA take
two. Shared memory returns one register a clock to one warp of the whole multiprocessor, whatever
lanes read the same, and moves one for a shuffle.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .device import ROOT

# Those of newer toolkits read no sm_70. `make cubins` puts it there.
DISASSEMBLER = ROOT / "build" / "triton-3.3" / "triton" / "backends" / "nvidia" / "bin" / "nvdisasm"
SUB_PARTITIONS = 4
ARITHMETIC_CYCLES = 2


@dataclass(frozen=True)
class Instruction:
    text: str

    @property
    def name(self) -> str:
        """With its modifiers: LDS.U.128."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]

    @property
    def kind(self) -> str:
        return self.name.split(".")[0]

    @property
    def target(self) -> str | None:
        """The label that it jumps to."""
        found = re.search(r"`\((\.L\S+)\)", self.text)
        return found[1] if found and self.kind == "BRA" else None

    @property
    def touches_memory(self) -> bool:
        return self.kind in ("LDG", "LDS", "STG", "STS")

    @property
    def shared_cycles(self) -> int:
        if self.kind == "SHFL":
            return 1
        if self.kind not in ("LDS", "STS"):
            return 0
        return 4 if ".128" in self.name else 2 if ".64" in self.name else 1


@dataclass(frozen=True)
class Loop:
    """What a warp issues in one step of a kernel's main loop, which is neither first nor last.

    Attributes:
        body: all of it, loops inside once.
        rolled: of loops of products inside.
    """

    body: tuple[Instruction, ...]
    rolled: tuple[Instruction, ...] = ()

    def going_round(self, times: int) -> Loop:
        """With every loop of products inside so many times, which nothing here says."""
        return Loop(self.body + (times - 1) * self.rolled)

    def count(self, *kinds: str) -> int:
        return sum(i.kind in kinds for i in self.body)

    @property
    def product(self) -> str:
        """The instruction that multiplies."""
        return "HMMA" if self.count("HMMA") else "FFMA"

    @property
    def products(self) -> int:
        return self.count(self.product)

    @property
    def share(self) -> float:
        """Of the issued instructions, those that multiply."""
        return self.products / len(self.body)

    @property
    def shared_cycles(self) -> int:
        return sum(i.shared_cycles for i in self.body)

    @property
    def product_cycles(self) -> int:
        """Of a multiprocessor whose sub-partitions all multiply."""
        return self.products * ARITHMETIC_CYCLES // SUB_PARTITIONS

    @property
    def others(self) -> Counter[str]:
        kinds = Counter(i.kind for i in self.body)
        del kinds[self.product]
        return kinds


def main_loops(cubin: bytes) -> dict[str, Loop]:
    """By the symbols of the kernels; skips where nothing disassembles sm_70."""
    if not DISASSEMBLER.exists():
        folder = DISASSEMBLER.relative_to(ROOT).parents[4]
        pytest.skip(f"no nvdisasm for sm_70: pip install --no-deps --target {folder} triton==3.3.1")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(DISASSEMBLER), file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\.text\.(\S+):$", listing, flags=re.MULTILINE)[1:]
    return {
        symbol: main_loop(code.splitlines())
        for symbol, code in zip(sections[::2], sections[1::2], strict=True)
    }


def main_loop(lines: Iterable[str]) -> Loop:
    """The loop with the most products: from a label to the last jump back to it."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in lines:
        if label := re.match(r"\s*(\.L\S+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(Instruction(found[1]))
    targets = {i: labels[c.target] for i, c in enumerate(code) if c.target in labels}
    ranges = {first: range(first, last + 1) for last, first in targets.items() if first <= last}
    loops = {r: loop for r in ranges.values() if (loop := walk(code, targets, r)).products}
    if not loops:
        return Loop(())
    outer = max(loops, key=lambda r: (loops[r].count("HMMA"), len(r)))
    inner = [loops[r] for r in loops if r != outer and r[0] in outer and r[-1] in outer]
    return Loop(loops[outer].body, sum((loop.body for loop in inner), ()))


def walk(code: list[Instruction], targets: dict[int, int], loop: range) -> Loop:
    """Takes the jumps over what masks keys that are not there, which the last step alone does."""
    body = []
    i = loop[0]
    while i in loop:
        body.append(code[i])
        target = targets.get(i, i)
        over = code[i + 1 : target] if i < target and target in loop else []
        masks = any(c.kind == "FSEL" for c in over) and not any(c.touches_memory for c in over)
        i = target if masks else i + 1
    return Loop(tuple(body))
