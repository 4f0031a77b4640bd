"""What every op's Triton kernels share: the GPU, how one is launched, strides, precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvt_kernels._C import splits_of as cheapest_splits
from pvt_kernels.backends.tensors import allows_tf32, has_aligned_rows
from pvt_kernels.backends.triton.fold import fold_kernel

# 8 elements are 16 bytes of a 16-bit dtype, the widest load. Kernels take strides and widths in
# units of as many: so the compiler knows that rows are aligned, whatever the numbers are, and
# compiles nothing anew when they change.
UNIT = tl.constexpr(8)
# with fewer blocks than this times what a GPU holds, the last wave, not full, weighs too much
WAVES = 2
# Parts and numbers of a row that a block of the fold loads at once, where there are many parts or
# few: of many no more numbers than one line of memory, 32 of 4 bytes, so that PVT's maps of 1900
# rows are thousands of blocks. Each of a multiprocessor's 2048 threads has 16 bytes on the way,
# which keeps device memory busy: 32 KB times 132 multiprocessors are more than an H100's 3.35 TB/s
# deliver in a latency of 1 us.
FOLD_MANY, FOLD_FEW = (16, 32), (4, 128)
FOLD_FEW_PARTS = 8
FOLD_WARPS, FOLD_RESIDENT = 4, 16


@dataclass(frozen=True)
class Gpu:
    """What a launch is fitted to.

    Attributes:
        arch: 80 for compute capability 8.0, and so on.
        multiprocessors: how many there are.
    """

    arch: int
    multiprocessors: int


# the interpreter runs one block at a time; two multiprocessors make it split small sizes too
INTERPRETER = Gpu(arch=80, multiprocessors=2)


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that it is called with; `blocks` of threads in a grid of one axis.

    One axis, since the others end at 65535 blocks. `resident` is how many of them a multiprocessor
    holds at once, by registers and shared memory; `maxnreg` is how many registers the compiler may
    give a thread, if there are to be more blocks than it would have it.
    """

    kernel: triton.JITFunction
    blocks: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    numbers: dict[str, int | float]
    constants: dict[str, int | str]
    warps: int = 4
    stages: int = 1
    resident: int = 1
    maxnreg: int | None = None


def run(*launches: Launch) -> None:
    """Launch one kernel after the other on the current stream of their tensors' device."""
    for launch in launches:
        if launch.blocks == 0:
            continue
        (tensor, *_) = launch.outputs.values()
        # Triton launches on the current device, which need not be the tensors'
        with torch.cuda.device_of(tensor):
            _run_in_interpreter(launch) if is_interpreted() else _launch(launch, {})


def is_interpreted() -> bool:
    """Whether TRITON_INTERPRET was set when the kernels were imported: they run on CPU tensors."""
    return not isinstance(fold_kernel, triton.JITFunction)


def gpu_of(tensor: Tensor) -> Gpu:
    """The GPU on which the tensor lies."""
    return INTERPRETER if is_interpreted() else _gpu(tensor.device)


def precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision: fp32 inputs are rounded to tf32 only if PyTorch's would be."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else "ieee"


def wide_rows(tensor: Tensor) -> Tensor:
    """The tensor itself where each row of its last dimension can be read 16 bytes at a time.

    Else a copy with rows that are padded up to a multiple of UNIT in memory, but not in its shape:
    so kernels see nothing but addresses that are multiples of 16 bytes and strides that are
    multiples of UNIT, and each is compiled once for all.
    """
    if has_aligned_rows(tensor, UNIT.value):
        return tensor
    *rows, width = tensor.shape
    return tensor.new_empty(*rows, padded(width))[..., :width].copy_(tensor)


def padded(width: int) -> int:
    """The multiple of UNIT from `width` on."""
    return cdiv(width, UNIT.value) * UNIT.value


def strides(axes: str, **tensors: Tensor) -> dict[str, int]:
    """The arguments stride_<name><axis> of the leading dimensions, in units, of wide rows."""
    return {
        # a dimension of size 1 may have any stride
        f"stride_{name}{axis}": stride // UNIT.value if size > 1 else 0
        for name, tensor in tensors.items()
        for axis, size, stride in zip(axes, tensor.shape, tensor.stride(), strict=False)
    }


@lru_cache(maxsize=4096)
def splits_of(
    gpu: Gpu,
    dtype: torch.dtype,
    resident: int,
    blocks: int,
    steps: int,
    *,
    multiply_adds: int,
    numbers: int,
) -> int:
    """Into how many parts to split the `steps` of each of `blocks` blocks; csrc/splits.h.

    Args:
        gpu: what the blocks are for.
        dtype: of the products.
        resident: blocks that a multiprocessor holds at once.
        blocks: before they are split.
        steps: of each of them.
        multiply_adds: of one step of one block.
        numbers: of the partial results of one split of all blocks, in fp32.
    """
    return cheapest_splits(
        gpu.multiprocessors * resident,
        blocks,
        steps,
        multiply_adds,
        numbers,
        _operations_a_byte(dtype),
    )


def _operations_a_byte(dtype: torch.dtype) -> int:
    """What an H100 computes, by its data sheet, while its memory moves one byte.

    An A100 computes half as much; the number of splits differs little.
    """
    if dtype != torch.float32:
        return 300
    return 150 if precision(dtype) == "tf32" else 20


def cdiv(size: int, part: int) -> int:
    """How many parts hold `size`: triton.cdiv is for kernels, and takes microseconds here."""
    return -(-size // part)


def fold(
    gpu: Gpu,
    stack: Tensor,
    stack_outs: Sequence[Tensor],
    map_partials: Tensor | None = None,
    map_outs: Sequence[Tensor] = (),
) -> Launch:
    """Sums over the parts of partial results in fp32, always in the same order, in one launch.

    Args:
        stack: (parts, outs, rows, width), contiguous.
        stack_outs: one to three of shape (rows, width), with the same strides, rows contiguous.
        map_partials: (parts, outer, inner, width), contiguous, if there is a map too.
        map_outs: one of shape (outer, inner, width), with any strides, or `outer` of shape
            (inner, width), two at most, with the same strides.
    """
    parts, outs, rows, width = stack.shape
    inputs = {
        "stack_partials": stack,
        # outs that are not there have no blocks, but pointers of the same type
        **{f"stack_out_{i}": stack_outs[0] for i in range(outs, 3)},
    }
    outputs = {f"stack_out_{i}": out for i, out in enumerate(stack_outs)}
    if map_partials is None:
        inputs |= {"map_partials": stack, "map_out_0": stack_outs[0], "map_out_1": stack_outs[0]}
        (map_parts, outer, inner, map_width), map_strides = (0, 0, 1, 0), (0, 0, 0)
    else:
        inputs["map_partials"] = map_partials
        outputs |= {f"map_out_{i}": out for i, out in enumerate(map_outs)}
        (map_parts, outer, inner, map_width), map_strides = map_partials.shape, map_outs[0].stride()
        if len(map_outs) == 1:
            inputs["map_out_1"] = map_outs[0]
        else:
            map_strides = (0, *map_strides)
    stride_outer, stride_inner, stride_width = map_strides
    few = max(parts, map_parts) <= FOLD_FEW_PARTS
    block_parts, block_width = FOLD_FEW if few else FOLD_MANY
    block_rows = 1
    if gpu == INTERPRETER:
        # which takes about as long for a small block
        block_width = block_of(max(width, map_width))
        block_rows = max(1, 2**14 // block_width)

    def blocks_of(rows: int, width: int) -> int:
        return cdiv(rows, block_rows) * cdiv(width, block_width)

    return Launch(
        fold_kernel,
        blocks=blocks_of(outer * inner, map_width) + blocks_of(outs * rows, width),
        inputs=inputs,
        outputs=outputs,
        numbers={
            "map_parts": map_parts,
            "map_size": outer * inner * map_width,
            "map_rows": outer * inner,
            "map_inner": inner,
            "map_outs": max(1, len(map_outs)),
            "map_width": map_width,
            "stride_outer": stride_outer,
            "stride_inner": stride_inner,
            "stride_width": stride_width,
            "stack_parts": parts,
            "stack_size": outs * rows * width,
            "stack_outs": outs,
            "stack_rows": rows,
            "stack_width": width,
            "stride_row": stack_outs[0].stride(0),
        },
        constants={
            "BLOCK_PARTS": block_parts,
            "BLOCK_ROWS": block_rows,
            "BLOCK_WIDTH": block_width,
        },
        warps=FOLD_WARPS,
        resident=FOLD_RESIDENT,
    )


def block_of(size: int) -> int:
    """The power of two that holds `size`: a block's sizes are such."""
    return 1 << max(0, size - 1).bit_length()


def _launch(launch: Launch, replaced: dict[str, Tensor]) -> None:
    launch.kernel[(launch.blocks,)](
        **(launch.inputs | launch.outputs | replaced),
        **launch.numbers,
        **launch.constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
        maxnreg=launch.maxnreg,
    )


def _run_in_interpreter(launch: Launch) -> None:
    """bfloat16, which the interpreter takes for integers, is run in fp32 and rounded at the end."""
    tensors = launch.inputs | launch.outputs
    upcast = {
        name: _in_fp32(tensor) for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16
    }
    _launch(launch, upcast)
    for name, tensor in launch.outputs.items():
        if name in upcast:
            tensor.copy_(upcast[name])


def _in_fp32(tensor: Tensor) -> Tensor:
    """A copy with the same strides, since these are arguments already."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.detach().as_strided((extent,), (1,)).float()
    return flat.as_strided(tensor.shape, tensor.stride())


@lru_cache
def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu(10 * properties.major + properties.minor, properties.multi_processor_count)
