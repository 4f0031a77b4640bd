"""What every op's Triton kernels share: the GPU, how one is launched, strides, precision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

from pvt_kernels.ops.tensors import allows_tf32
from pvt_kernels.ops.triton_fold import fold_kernel

# 8 elements are 16 bytes of a 16-bit dtype, the widest load
WIDE_STRIDE = 8
# with fewer blocks than this times what a GPU holds, the last wave, not full, weighs too much
WAVES = 2
# numbers up to which a sum is of vectors, such as a bias's gradient: few blocks, of many parts
FOLD_VECTOR = 2048


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

    One axis, since the others end at 65535 blocks. `resident` is how many of them the tile's table
    says that a multiprocessor holds at once, 0 where there is no table.
    """

    kernel: triton.JITFunction
    blocks: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    numbers: dict[str, int | float]
    constants: dict[str, int | str]
    warps: int = 4
    stages: int = 1
    resident: int = 0


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


def strides(axes: str, **tensors: Tensor) -> tuple[dict[str, int], int]:
    """The arguments stride_<name><axis> of the tensors' leading dimensions, and their unit.

    Strides are passed in units of WIDE_STRIDE elements where all are multiples of it: so the
    compiler knows that rows are aligned for wide loads, whatever the strides are, and compiles
    nothing anew when they change.
    """
    elements = {
        # a dimension of size 1 may have any stride
        f"stride_{name}{axis}": stride if size > 1 else 0
        for name, tensor in tensors.items()
        for axis, size, stride in zip(axes, tensor.shape, tensor.stride(), strict=False)
    }
    unit = WIDE_STRIDE if all(stride % WIDE_STRIDE == 0 for stride in elements.values()) else 1
    return {name: stride // unit for name, stride in elements.items()}, unit


def splits_of(gpu: Gpu, resident: int, blocks: int, steps: int) -> int:
    """Into how many parts to split the `steps` of each of `blocks` blocks, to fill the GPU.

    At least WAVES waves of blocks, of which every multiprocessor holds `resident`, where there
    are enough steps; of the next few numbers, the one with which the last block ends soonest.
    """
    wave = gpu.multiprocessors * resident
    least = triton.cdiv(WAVES * wave, max(blocks, 1))
    if least == 1 or steps == 0:
        return 1
    return min(
        range(min(least, steps), min(2 * least, steps) + 1),
        key=lambda splits: triton.cdiv(blocks * splits, wave) * triton.cdiv(steps, splits),
    )


def fold(gpu: Gpu, partials: Tensor, out: Tensor) -> Launch:
    """out = partials (parts, ...) summed over the parts, always in the same order."""
    # parts that a block loads at once, and numbers of each
    parts, elements = (64, 32) if out.numel() <= FOLD_VECTOR else (8, 128)
    if gpu == INTERPRETER:
        elements = 2**14
    return Launch(
        fold_kernel,
        blocks=triton.cdiv(out.numel(), elements),
        inputs={"partials": partials},
        outputs={"out": out},
        numbers={
            "size": out.numel(),
            "stride": partials.stride(0),
            "parts": partials.shape[0],
        },
        constants={"BLOCK_PARTS": parts, "BLOCK": elements},
    )


def block_of(size: int) -> int:
    """The power of two that holds `size`: a block's sizes are such."""
    return triton.next_power_of_2(size)


def _launch(launch: Launch, replaced: dict[str, Tensor]) -> None:
    launch.kernel[(launch.blocks,)](
        **(launch.inputs | launch.outputs | replaced),
        **launch.numbers,
        **launch.constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
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
