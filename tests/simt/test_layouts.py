"""The lane layouts of the stand-in instructions, against a second source: CUTLASS's traits."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import torch

# instruction, what CUTLASS calls it, its header, depth
INSTRUCTIONS = (
    ("m16n8k8_f16", "SM75_16x8x8_F32F16F16F32_TN", "mma_traits_sm75.hpp", 8),
    ("m16n8k16_f16", "SM80_16x8x16_F16F16F16F16_TN", "mma_traits_sm80.hpp", 16),
    ("m16n8k16_bf16", "SM80_16x8x16_F16F16F16F16_TN", "mma_traits_sm80.hpp", 16),
)


# "row" or "col" of a and b, as BLAS names them
QUAD_PAIR_INSTRUCTIONS = (
    ("m8n8k4_row_row", "SM70_8x8x4_F32F16F16F32_TT"),
    ("m8n8k4_row_col", "SM70_8x8x4_F32F16F16F32_TN"),
    ("m8n8k4_col_row", "SM70_8x8x4_F32F16F16F32_NT"),
    ("m8n8k4_col_col", "SM70_8x8x4_F32F16F16F32_NN"),
)


@pytest.fixture(scope="module")
def headers() -> Path:
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None:
        pytest.skip("CUTLASS's headers are not installed here: pip install nvidia-cutlass")
    return Path(spec.origin).parent / "source" / "include" / "cute" / "atom"


def parse(layout: str) -> tuple[object, object]:
    """`Layout<Shape<_4,_8>, Stride<_8,_1>>` -> its shape and stride, as nested tuples."""
    text = re.sub(r"\s+", "", layout)
    text = re.sub(r"(Layout|Shape|Stride)<", "(", text).replace(">", ",)").replace("_", "")
    shape, stride = ast.literal_eval(text)
    return shape, stride


def traits(header: Path, name: str) -> dict[str, tuple[object, object]]:
    """The layouts in `struct NAME_Traits<name>`, by their names there."""
    text = header.read_text()
    aliases = dict(re.findall(r"^using (\w+)\s*= (Layout<.*?>);", text, re.MULTILINE | re.DOTALL))
    body = re.search(rf"_Traits<{name}>\s*\{{(.*?)\}};", text, re.DOTALL)[1]
    found = re.findall(r"using (\w+Layout)\s*= (.*?);", body, re.DOTALL)
    return {key: parse(aliases.get(value, value)) for key, value in found if "Ref" not in key}


def offset(shape: object, stride: object, index: int) -> int:
    """Where a layout maps an index, whose first mode counts fastest."""
    if isinstance(shape, int):
        return index * stride
    total = 0
    for s, d in zip(shape, stride, strict=True):
        size = count(s)
        total += offset(s, d, index % size)
        index //= size
    return total


def count(shape: object) -> int:
    return (
        shape if isinstance(shape, int) else torch.tensor([count(s) for s in shape]).prod().item()
    )


def map_of(layout: tuple[object, object]) -> torch.Tensor:
    """(32 lanes, values) -> where each lies in the matrix, whose rows count fastest."""
    (threads, values), (thread_stride, value_stride) = layout
    return torch.tensor(
        [
            [
                offset(threads, thread_stride, t) + offset(values, value_stride, v)
                for v in range(count(values))
            ]
            for t in range(count(threads))
        ]
    )


def dealt(matrix: torch.Tensor, layout: tuple[object, object]) -> list[list[int]]:
    """The 16-bit values that each lane holds of a matrix."""
    bits = matrix.T.flatten().view(torch.int16).int() & 0xFFFF
    return bits[map_of(layout)].tolist()


@pytest.mark.parametrize(("instruction", "name", "header", "depth"), INSTRUCTIONS)
def test_mma(device, headers, instruction, name, header, depth):
    layouts = traits(headers / header, name)
    dtype = torch.bfloat16 if instruction.endswith("bf16") else torch.float16
    # small integers, of which every sum is exact
    a = torch.randint(-8, 9, (16, depth)).to(dtype)
    b = torch.randint(-8, 9, (depth, 8)).to(dtype)
    # CUTLASS has b as (N, K)
    operands = dealt(a, layouts["ALayout"]), dealt(b.T.contiguous(), layouts["BLayout"])
    c = torch.tensor(device.run("simt_cuda.mma", instruction, *operands))
    product = (a.float() @ b.float()).T.flatten()
    assert torch.equal(c, product[map_of(layouts["CLayout"])])


@pytest.mark.parametrize(("instruction", "name"), QUAD_PAIR_INSTRUCTIONS)
def test_mma_in_quad_pairs(device, headers, instruction, name):
    """Four products, each by eight lanes, of which CUTLASS's traits number those of one."""
    text = (headers / "mma_traits_sm70.hpp").read_text()
    layouts = traits(headers / "mma_traits_sm70.hpp", name)
    (quad_pair,) = re.findall(r"SM70_QuadPair = (Layout<.*?>);", text, re.DOTALL)
    members = [offset(*parse(quad_pair), thread) for thread in range(8)]
    a = torch.randint(-8, 9, (4, 8, 4)).half()
    b = torch.randint(-8, 9, (4, 4, 8)).half()
    operands = [[None] * 32, [None] * 32]
    for pair in range(4):
        for operand, matrix, layout in ((0, a[pair], "ALayout"), (1, b[pair].T, "BLayout")):
            for member, values in zip(members, dealt(matrix, layouts[layout]), strict=True):
                operands[operand][4 * pair + member] = values
    c = torch.tensor(device.run("simt_cuda.mma", instruction, *operands))
    for pair in range(4):
        product = (a[pair].float() @ b[pair].float()).T.flatten()
        lanes = [4 * pair + member for member in members]
        assert torch.equal(c[lanes], product[map_of(layouts["CLayout"])])


@pytest.mark.parametrize(
    ("transposed", "name"), [(False, "SM75_U32x4_LDSM_N"), (True, "SM75_U16x8_LDSM_T")]
)
def test_ldmatrix(device, headers, transposed, name):
    layouts = traits(headers / "copy_traits_sm75.hpp", name)
    # in bits; a value is where its first bit is
    destination = map_of(layouts["DstLayout"])[:, ::16] // 16
    rows = torch.arange(256)
    values = torch.tensor(device.run("simt_cuda.load_matrices", rows.tolist(), transposed))
    assert torch.equal(values, rows[destination])
