"""What a V100 issues in the kernels' main loops, and whether its shared memory keeps up.

The table goes to build/main_loops.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from .device import ROOT
from .nvrtc import compile_kernels
from .sass import Loop, main_loops

ATTENTION = {
    "Sm70": ("attention_forward", "attention_dq", "attention_dk_dv"),
    "Simt70": ("attention_forward", "attention_dq_dk_dv"),
}
REDUCTION = ("spatial_reduction_product", "spatial_reduction_dx", "spatial_reduction_dweight")


@dataclass(frozen=True)
class Bounds:
    """What a loop reaches.

    Attributes:
        share: of the issued instructions those that multiply, at least.
        shared: cycles of shared memory for one of multiplying, at most.
    """

    share: float
    shared: float


# heads 64 wide, as PVT's are
BOUNDS = {
    ("Sm70", "attention_forward"): Bounds(0.49, 0.8),
    ("Sm70", "attention_dq"): Bounds(0.58, 0.94),
    ("Sm70", "attention_dk_dv"): Bounds(0.55, 0.91),
    ("Sm70", "spatial_reduction_product"): Bounds(0.46, 1.25),
    ("Sm70", "spatial_reduction_dx"): Bounds(0.58, 1.25),
    ("Sm70", "spatial_reduction_dweight"): Bounds(0.4, 1.25),
    ("Simt70", "attention_forward"): Bounds(0.78, 0.75),
    ("Simt70", "attention_dq_dk_dv"): Bounds(0.72, 0.8),
    ("Simt70", "spatial_reduction_product"): Bounds(0.65, 0.82),
    ("Simt70", "spatial_reduction_dx"): Bounds(0.76, 0.82),
    ("Simt70", "spatial_reduction_dweight"): Bounds(0.59, 0.82),
}
# fp32's loops of products take 8 of the depth at a time: of 64 channels, keys or queries, or of a
# product's step
ROUNDS = dict.fromkeys(ATTENTION["Simt70"], 8) | dict.fromkeys(REDUCTION, 4)
# kinds of which a loop has fewer are summed up
LEAST_SHOWN = 8


@pytest.fixture(scope="module")
def loops() -> dict[tuple[str, str], Loop]:
    """By atom and kernel."""
    space = "pvt_kernels::cuda::"
    names = {}
    for atom in ("Sm70", "Simt70"):
        for kernel in ATTENTION[atom]:
            names[atom, kernel] = f"{kernel}_kernel<{space}{atom}, 64>"
        for kernel in REDUCTION:
            names[atom, kernel] = f"{kernel}_kernel<{space}{atom}>"
    by_symbol = main_loops(compile_kernels("12.9", 70, list(names.values())).cubin)
    found = {}
    for atom, kernel in names:
        pattern = rf"\d{kernel}_kernelI.*\d{atom}(E|L)"
        (loop,) = (loop for s, loop in by_symbol.items() if re.search(pattern, s))
        found[atom, kernel] = loop.going_round(ROUNDS.get(kernel, 1))
    return found


@pytest.fixture(scope="module")
def table(loops):
    yield
    rows = [
        "",
        "## A step of the main loops for sm_70",
        "",
        "Instructions that a warp issues, and of them those that multiply; cycles in which a",
        "multiprocessor's shared memory serves it, and in which its sub-partitions multiply;",
        "exponentials; all others by kind.",
        "",
        "| kernel | atom | issued | multiply | share | shared cycles | multiply cycles | ratio | "
        "MUFU | others |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (atom, kernel), loop in loops.items():
        others = loop.others
        mufu = others.pop("MUFU", 0)
        shown = [f"{n} {kind}" for kind, n in others.most_common() if n >= LEAST_SHOWN]
        shown.append(f"{sum(n for n in others.values() if n < LEAST_SHOWN)} more")
        product, ratio = loop.product, loop.shared_cycles / loop.product_cycles
        rows.append(
            f"| {kernel} | {atom} | {len(loop.body)} | {loop.products} {product} | "
            f"{loop.share:.0%} | {loop.shared_cycles} | {loop.product_cycles} | {ratio:.2f} | "
            f"{mufu} | {', '.join(shown)} |"
        )
    path = ROOT / "build" / "main_loops.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(("atom", "kernel"), BOUNDS)
def test_shared_memory_keeps_up_with_the_products(loops, table, atom, kernel):
    loop, bounds = loops[atom, kernel], BOUNDS[atom, kernel]
    assert loop.count("LDL", "STL") == 0, "a value has left its register"
    assert loop.share >= bounds.share
    assert loop.shared_cycles <= bounds.shared * loop.product_cycles
