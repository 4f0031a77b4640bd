"""What the GPU kernels of a layer cost by the formula, and how long a GPU would need at least.

A measured time is read against the roofline: the larger of the time for the floating-point
operations at the GPU's peak and that for the compulsory bytes, each input read once and each
output written once, at its memory bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from rich.console import Console

from pvt_kernels.benchmarking import cuda_launches
from pvt_kernels.benchmarking.shapes import LayerShape, Size, format_size, stage_shape
from pvt_kernels.benchmarking.table import Column, Table, print_table


@dataclass(frozen=True)
class GpuModel:
    """A GPU by its data sheet: dense rates, without sparsity.

    Attributes:
        arch: 80 for compute capability 8.0, and so on.
        multiprocessors: how many there are.
        bandwidth: of device memory, bytes a second.
        peak: floating-point operations a second by dtype; fp32 is without TF32.
    """

    name: str
    arch: int
    multiprocessors: int
    bandwidth: float
    peak: dict[torch.dtype, float]


def _peak(half: float, single: float) -> dict[torch.dtype, float]:
    return {torch.float16: half, torch.bfloat16: half, torch.float32: single}


GPU_MODELS = {
    # NVIDIA's data sheets of the V100 SXM2, the A100 SXM 80 GB and the H100 SXM
    "v100": GpuModel("V100 SXM2", 70, 80, 900e9, _peak(125e12, 15.7e12)),
    "a100": GpuModel("A100 SXM 80GB", 80, 108, 2039e9, _peak(312e12, 19.5e12)),
    "h100": GpuModel("H100 SXM", 90, 132, 3350e9, _peak(989e12, 67e12)),
}

# wider layers have no fused forward
FUSED_MOST_CHANNELS = 64


@dataclass(frozen=True)
class KernelCost:
    """One kernel of a layer, or one product that PyTorch computes.

    Attributes:
        name: of the kernel as `make aot` lists it, without "_kernel", and for a fold its op's;
            else of the product or the copy.
        flops: multiplications and additions of its matrix products.
        bytes: inputs read once and outputs written once.
    """

    name: str
    flops: int
    bytes: int

    def seconds(self, gpu: GpuModel, dtype: torch.dtype) -> float:
        """The roofline: no implementation can take less."""
        return max(self.flops / gpu.peak[dtype], self.bytes / gpu.bandwidth)


def forward_costs(shape: LayerShape, dtype: torch.dtype) -> list[KernelCost]:
    """The kernels of a layer's forward, in the order of their launches."""
    b, n, m, c, r = shape.batch, shape.queries, shape.keys, shape.dim, shape.sr_ratio
    size = dtype.itemsize
    x, y, lse = b * n * c * size, b * m * c * size, 4 * b * shape.heads * n
    weight = c * c * size
    costs = [KernelCost("q projection", 2 * b * n * c * c, 2 * x + weight)]
    if r > 1:
        z = 4 * b * m * c
        patches = b * m * r * r * c * size
        costs += [
            _weight_copy(shape, dtype),
            KernelCost("convolution", 2 * b * m * (r * c) ** 2, patches + r * r * weight + z),
            # the normalised rows and rstd are saved in fp32
            KernelCost("norm", 0, z + y + 4 * b * m * (c + 1)),
        ]
    return [
        *costs,
        KernelCost("kv projection", 4 * b * m * c * c, 3 * y + 2 * weight),
        KernelCost("attention_forward", 4 * b * n * m * c, 2 * x + 2 * y + lse),
        KernelCost("out projection", 2 * b * n * c * c, 2 * x + weight),
    ]


def fused_forward_cost(shape: LayerShape, dtype: torch.dtype) -> KernelCost:
    """q projection, attention and out projection in one kernel, in inference: no q and no o."""
    b, n, m, c = shape.batch, shape.queries, shape.keys, shape.dim
    size = dtype.itemsize
    x, y, lse = b * n * c * size, b * m * c * size, 4 * b * shape.heads * n
    flops = 4 * b * n * c * c + 4 * b * n * m * c
    return KernelCost("multi_head_attention", flops, 2 * x + 2 * y + lse + 2 * c * c * size)


def backward_costs(shape: LayerShape, dtype: torch.dtype, arch: int = 80) -> list[KernelCost]:
    """The kernels of a layer's backward. Workspaces of splits are no compulsory bytes.

    Before compute capability 8.0 they are the CUDA kernels, of which fp32's compute S and dP once.
    """
    b, n, m, c, r = shape.batch, shape.queries, shape.keys, shape.dim, shape.sr_ratio
    size = dtype.itemsize
    x, y, lse = b * n * c * size, b * m * c * size, 4 * b * shape.heads * n
    weight = c * c * size
    product = 2 * b * n * m * c
    if arch < 80 and dtype == torch.float32:
        attention = [
            # reads do and o
            KernelCost("attention_delta", 0, 2 * x + lse),
            # S, dP, dQ, dV and dK; reads do, q, k, v, lse and delta, writes dq
            KernelCost("attention_dqdkdv", 5 * product, 3 * x + 2 * y + 2 * lse),
        ]
    else:
        attention = [
            # S, dP and dQ; reads do, q, o, k, v and lse, writes dq and delta
            KernelCost("attention_dq", 3 * product, 4 * x + 2 * y + 2 * lse),
            # S, dP, dV and dK; reads do, q, k, v, lse and delta; the fold writes dk and dv
            KernelCost("attention_dkdv", 4 * product, 2 * x + 2 * y + 2 * lse),
        ]
    costs = [
        # of a projection: the gradients of its input and of its weight
        KernelCost("out projection", 4 * b * n * c * c, 3 * x + 2 * weight),
        *attention,
        KernelCost("attention_fold", 0, 2 * y),
        KernelCost("kv projection", 8 * b * m * c * c, 5 * y + 4 * weight),
        KernelCost("q projection", 4 * b * n * c * c, 3 * x + 2 * weight),
    ]
    if r > 1:
        patches, flops = b * m * r * r * c * size, 2 * b * m * (r * c) ** 2
        costs += [
            _weight_copy(shape, dtype),
            # reads dy, the normalised rows, rstd and the weight, writes dx and dz
            KernelCost("dx", flops, 2 * y + 4 * b * m * (c + 1) + r * r * weight + x),
            KernelCost("dweight", flops, patches + y),
            KernelCost("reduction_fold", 0, r * r * weight),
        ]
    return costs


def _weight_copy(shape: LayerShape, dtype: torch.dtype) -> KernelCost:
    """The convolution's weight, into the order of the tokens unless it is in channels_last."""
    return KernelCost("weight copy", 0, 2 * (shape.sr_ratio * shape.dim) ** 2 * dtype.itemsize)


def waves(shape: LayerShape, gpu: GpuModel, dtype: torch.dtype) -> dict[str, float]:
    """Blocks of each kernel that runs there, as multiples of what the GPU holds at once.

    From compute capability 8.0 on these are the Triton kernels', and nothing where Triton is not
    installed; before, the CUDA kernels'.
    """
    if gpu.arch < 80:
        counts = cuda_launches.blocks_of_a_layer(shape, dtype, gpu.multiprocessors)
    elif find_spec("triton") is None:
        return {}
    else:
        from pvt_kernels.backends.triton.launch import Gpu
        from pvt_kernels.benchmarking.triton_launches import launches_of_a_layer

        launches = launches_of_a_layer(shape, dtype, Gpu(gpu.arch, gpu.multiprocessors))
        counts = {name: (launch.blocks, launch.resident) for name, launch in launches.items()}
    return {name: n / (held * gpu.multiprocessors) for name, (n, held) in counts.items()}


COLUMNS = (
    Column("stage", number=False),
    Column("kernel", number=False),
    Column("GFLOP"),
    Column("MB"),
    Column("us"),
    Column("bound", number=False),
    Column("waves", drop=1),
)
NOTE = (
    "us: by the roofline, the larger of arithmetic at the GPU's peak and memory at its bandwidth. "
    "Totals: of the kernels one after the other; fused is inference's forward, with the "
    "projections and the attention in one kernel."
)
# that the fused kernel takes the place of
FUSED = ("q projection", "attention_forward", "out projection")


def totals(shape: LayerShape, dtype: torch.dtype, arch: int) -> dict[str, list[KernelCost]]:
    """The kernels of a layer's forward, with one kernel for the attention, and backward."""
    forward = forward_costs(shape, dtype)
    made = {"fwd": forward, "bwd": backward_costs(shape, dtype, arch)}
    if shape.dim <= FUSED_MOST_CHANNELS:
        rest = [cost for cost in forward if cost.name not in FUSED]
        made["fused fwd"] = [*rest, fused_forward_cost(shape, dtype)]
    return made


def print_model(
    console: Console,
    gpu: GpuModel,
    dtype: torch.dtype,
    size: Size,
    stages: list[int],
    batch: int,
) -> None:
    """Every kernel's operations, bytes, roofline and waves, and the sum for each stage."""
    rows = []
    for stage in stages:
        shape = stage_shape(stage, size, batch)
        counts = waves(shape, gpu, dtype)
        for direction, costs in totals(shape, dtype, gpu.arch).items():
            label = f"{stage}, {direction}"
            # the fused forward's other kernels stand in the forward
            shown = costs[-1:] if direction == "fused fwd" else costs
            for index, cost in enumerate(shown):
                count = counts.get(cost.name)
                figures = _figures([cost], gpu, dtype)
                bound = (
                    "arithmetic"
                    if cost.flops / gpu.peak[dtype] > cost.bytes / gpu.bandwidth
                    else "memory"
                )
                rows.append(
                    (
                        "" if index else label,
                        cost.name,
                        *figures,
                        bound,
                        "-" if count is None else f"{count:.1f}",
                    )
                )
            rows.append(("", "total", *_figures(costs, gpu, dtype), "", ""))
    note = f"{NOTE} Waves: of the {'CUDA' if gpu.arch < 80 else 'Triton'} kernels' blocks."
    title = (
        f"{gpu.name}, {str(dtype).removeprefix('torch.')}, {batch} x {format_size(size)}: "
        "the least time, not measured"
    )
    print_table(Table(title, COLUMNS, rows, [note]), console)


def _figures(costs: list[KernelCost], gpu: GpuModel, dtype: torch.dtype) -> tuple[str, str, str]:
    """GFLOP, MB and us of kernels, one after the other."""
    return (
        f"{sum(cost.flops for cost in costs) / 1e9:.2f}",
        f"{sum(cost.bytes for cost in costs) / 1e6:.1f}",
        f"{1e6 * sum(cost.seconds(gpu, dtype) for cost in costs):.1f}",
    )
