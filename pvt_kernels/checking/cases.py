"""The calls whose results are checked: every op, on odd shapes and on those of PVT's stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pvt_kernels.backends.reference import attention as attention_reference
from pvt_kernels.backends.reference import feed_forward as feed_forward_reference
from pvt_kernels.backends.reference import multi_head_attention as mha_reference
from pvt_kernels.backends.reference import spatial_reduction as reduction_reference
from pvt_kernels.benchmarking.accuracy import attention_oracle
from pvt_kernels.benchmarking.contenders import PlainSRAttention, eager_core, oracle_core
from pvt_kernels.benchmarking.needs import layer_growth
from pvt_kernels.benchmarking.shapes import STAGES, LayerShape, Size, stage_shape
from pvt_kernels.layers import SRAttention
from pvt_kernels.ops.attention import attention
from pvt_kernels.ops.feed_forward import feed_forward
from pvt_kernels.ops.multi_head_attention import multi_head_attention
from pvt_kernels.ops.spatial_reduction import spatial_reduction

EPS = 1e-5
# of PVT's and PVTv2's feed-forward networks, by stage
MLP_RATIOS = {1: 8, 2: 8, 3: 4, 4: 4}
MHA_NAMES = ("out", "dx", "dy", "dWq", "dbq", "dWkv", "dbkv", "dWo", "dbo")
REDUCTION_NAMES = ("y", "dx", "dweight", "dbias", "dgamma", "dbeta")
FC1_NAMES, CONV_NAMES, FC2_NAMES = ("dW1", "db1"), ("dWdw", "dbdw"), ("dW2", "db2")
# Inputs over which the errors of a small shape are pooled: one is a matter of luck, above all in
# the gradient of a bias, which is a single row.
POOLED = 8

# how the output's gradient lies in memory
DENSE, EXPANDED, SLICED, TRANSPOSED = "dense", "expanded", "sliced", "transposed"
# (B, N, M, heads, d, the output's gradient)
ODD_ATTENTION = (
    (1, 129, 65, 1, 64, DENSE),
    (2, 129, 65, 5, 64, SLICED),
    (2, 129, 65, 2, 64, EXPANDED),
    (1, 129, 65, 2, 64, TRANSPOSED),
    (2, 70, 1, 2, 64, DENSE),
    (1, 129, 65, 3, 40, DENSE),
    (2, 190, 95, 5, 32, DENSE),
    (1, 129, 65, 1, 128, DENSE),
    (0, 129, 65, 1, 64, DENSE),
)
# (B, N, M, C, heads)
ODD_MHA = (
    (2, 129, 65, 64, 1),
    (2, 129, 65, 32, 1),
    (1, 129, 65, 120, 3),
    (1, 129, 65, 128, 2),
    (1, 129, 65, 128, 4),
    (0, 129, 65, 64, 1),
)
# (B, H, W, C, R)
ODD_REDUCTION = ((2, 9, 13, 40, 3), (1, 41, 27, 64, 2), (3, 7, 13, 16, 1), (0, 9, 13, 40, 3))
# (B, H, W, C, D, with a convolution, with a ReLU before it)
ODD_FEED_FORWARD = (
    (2, 9, 13, 40, 100, True, False),
    (1, 41, 27, 64, 70, True, False),
    (2, 1, 1, 19, 33, True, False),
    (1, 9, 14, 32, 64, True, True),
    (2, 43, 3, 48, 130, False, False),
    (1, 17, 1, 21, 35, False, False),
    (0, 9, 13, 40, 100, True, False),
)
# (B, H, W, C, heads, R)
ODD_LAYER = (
    (2, 24, 17, 64, 1, 8),
    (1, 7, 13, 320, 5, 2),
    (1, 6, 7, 96, 3, 1),
    (0, 9, 13, 64, 1, 4),
)


@dataclass(frozen=True)
class Case:
    """A call of an op, of which the output and the gradient of every input are compared.

    Attributes:
        op: its name.
        shape: as text.
        names: of the output and of the inputs' gradients.
        inputs: random ones on a device, in fp32.
        call: the op.
        definition: the plain PyTorch formula.
        oracle: the same for fp64, without the matrix of all queries by all keys.
        gradient: how the output's gradient lies in memory.
        strided: whether the inputs have gaps between their rows.
        samples: how many inputs.
        layer: that the call is of, or of which it is a part; None for odd shapes, which are small.
    """

    op: str
    shape: str
    names: tuple[str, ...]
    inputs: Callable[[torch.device], list[Tensor]]
    call: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    oracle: Callable[..., Tensor]
    gradient: str = DENSE
    strided: bool = False
    samples: int = POOLED
    layer: LayerShape | None = None

    def __str__(self) -> str:
        return f"{self.op} {self.shape}"

    def sample(self, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Inputs, and a gradient of the output."""
        inputs = [t.to(dtype) for t in self.inputs(device)]
        if self.strided:
            inputs = [_with_gaps(t) for t in inputs]
        with torch.no_grad():
            out = self.definition(*(t.to("meta") for t in inputs))
        return inputs, _laid_out(self.gradient, out.shape, dtype, device)

    def needed_bytes(self, dtype: torch.dtype) -> int:
        """What the formula takes, and with it the fp64 oracle."""
        if self.layer is None:
            return 0
        return 2 * layer_growth("eager", self.layer, dtype, backward=True)


def odd_cases() -> list[Case]:
    """Small shapes that fill no tile, and memory that is not dense."""
    return [
        *(attention_case(*sizes) for sizes in ODD_ATTENTION),
        attention_case(2, 129, 65, 2, 64, DENSE, strided=True),
        *(mha_case(*sizes) for sizes in ODD_MHA),
        mha_case(2, 129, 65, 64, 1, strided=True),
        *(reduction_case(*sizes) for sizes in ODD_REDUCTION),
        reduction_case(2, 9, 13, 40, 3, strided=True),
        *(feed_forward_case(*sizes) for sizes in ODD_FEED_FORWARD),
        feed_forward_case(2, 9, 13, 40, 100, True, False, strided=True),
        *(layer_case(*sizes) for sizes in ODD_LAYER),
        layer_case(2, 24, 17, 64, 1, 8, strided=True),
    ]


def stage_cases(size: Size, batch: int) -> list[Case]:
    """Every op of PVT's four stages, for images of a size."""
    found = []
    for stage in STAGES:
        s = stage_shape(stage, size, batch)
        rest = {"samples": 1, "layer": s}
        sizes = (batch, s.queries, s.keys)
        found += [
            attention_case(*sizes, s.heads, s.dim // s.heads, DENSE, **rest),
            mha_case(*sizes, s.dim, s.heads, **rest),
            layer_case(batch, s.height, s.width, s.dim, s.heads, s.sr_ratio, **rest),
        ]
        hidden = s.dim * MLP_RATIOS[stage]
        found += [
            feed_forward_case(batch, s.height, s.width, s.dim, hidden, conv, False, **rest)
            for conv in (False, True)
        ]
        if s.sr_ratio > 1:
            found.append(reduction_case(batch, s.height, s.width, s.dim, s.sr_ratio, **rest))
    return found


def attention_case(
    B: int, N: int, M: int, heads: int, d: int, gradient: str, **options: object
) -> Case:
    def inputs(device: torch.device) -> list[Tensor]:
        # as a layer has them: k and v are halves of one projection
        q = torch.randn(B, N, heads, d, device=device)
        return [q, *torch.randn(B, M, 2, heads, d, device=device).unbind(2)]

    definition = partial(_with_last, attention_reference.attention, d**-0.5)
    shape = f"B {B}, N {N}, M {M}, {heads} x {d}{_memory(gradient, options)}"
    names = ("o", "dq", "dk", "dv")
    return Case("attention", shape, names, inputs, attention, definition, attention_oracle,
                gradient, **options)  # fmt: skip


def mha_case(B: int, N: int, M: int, C: int, heads: int, **options: object) -> Case:
    def inputs(device: torch.device) -> list[Tensor]:
        tensors = [torch.randn(B, n, C, device=device) for n in (N, M)]
        for rows in (C, 2 * C, C):
            tensors.append(torch.randn(rows, C, device=device) * C**-0.5)
            tensors.append(0.1 * torch.randn(rows, device=device))
        return tensors

    def oracle(x: Tensor, y: Tensor, *layers: Tensor) -> Tensor:
        q, k, v = mha_reference.project(x, y, *layers[:4], heads)
        return F.linear(attention_oracle(q, k, v).flatten(2), *layers[4:])

    def definition(*tensors: Tensor) -> Tensor:
        return mha_reference.multi_head_attention(*tensors, heads, (C // heads) ** -0.5)

    shape = f"B {B}, N {N}, M {M}, C {C}, {heads} heads{_memory(DENSE, options)}"
    call = partial(_with_last, multi_head_attention, heads)
    return Case("multi_head_attention", shape, MHA_NAMES, inputs, call, definition, oracle,
                **options)  # fmt: skip


def reduction_case(B: int, H: int, W: int, C: int, R: int, **options: object) -> Case:
    def inputs(device: torch.device) -> list[Tensor]:
        x = torch.randn(B, H * W, C, device=device)
        weight = torch.randn(C, C, R, R, device=device) * (R * R * C) ** -0.5
        bias, gamma, beta = (0.1 * torch.randn(C, device=device) for _ in range(3))
        return [x, weight, bias, 1 + gamma, beta]

    def at_size(op: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
        return op(x, H, W, *parameters, EPS)

    call, definition = (
        partial(at_size, op) for op in (spatial_reduction, reduction_reference.spatial_reduction)
    )
    shape = f"B {B}, {H} x {W}, C {C}, R {R}{_memory(DENSE, options)}"
    return Case("spatial_reduction", shape, REDUCTION_NAMES, inputs, call, definition, definition,
                **options)  # fmt: skip


def feed_forward_case(
    B: int, H: int, W: int, C: int, D: int, conv: bool, relu: bool, **options: object
) -> Case:
    def inputs(device: torch.device) -> list[Tensor]:
        shapes = ((D, C), (D, 1, 3, 3), (C, D)) if conv else ((D, C), (C, D))
        tensors = [torch.randn(B, H * W, C, device=device)]
        for shape in shapes:
            weight = torch.randn(shape, device=device)
            tensors.append(weight * weight[0].numel() ** -0.5)
            tensors.append(0.1 * torch.randn(shape[0], device=device))
        return tensors

    def run(op: Callable[..., Tensor], x: Tensor, *layers: Tensor) -> Tensor:
        if not conv:
            layers = (*layers[:2], None, None, *layers[2:])
        return op(x, H, W, *layers, "gelu", relu)

    call, definition = (
        partial(run, op) for op in (feed_forward, feed_forward_reference.feed_forward)
    )
    names = ("out", "dx", *FC1_NAMES, *(CONV_NAMES if conv else ()), *FC2_NAMES)
    form = f"{', ReLU' if relu else ''}{', conv' if conv else ''}"
    shape = f"B {B}, {H} x {W}, C {C}, D {D}{form}{_memory(DENSE, options)}"
    return Case("feed_forward", shape, names, inputs, call, definition, definition, **options)


def layer_case(B: int, H: int, W: int, C: int, heads: int, R: int, **options: object) -> Case:
    own = SRAttention(C, heads, qkv_bias=True, sr_ratio=R)
    definition, oracle = (
        PlainSRAttention(C, heads, R, core)
        for core in (eager_core, partial(oracle_core, rows=None))
    )
    names = [name for name, _ in own.named_parameters()]

    def inputs(device: torch.device) -> list[Tensor]:
        x = torch.randn(B, H * W, C, device=device)
        return [x, *(_parameter(name, p, device) for name, p in own.named_parameters())]

    def run(module: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x, H, W))

    shape = f"B {B}, {H} x {W}, C {C}, {heads} heads, R {R}{_memory(DENSE, options)}"
    results = ("out", "dx", *(f"d {name}" for name in names))
    forms = (partial(run, module) for module in (own, definition, oracle))
    return Case("SRAttention", shape, results, inputs, *forms, **options)


def _parameter(name: str, like: Tensor, device: torch.device) -> Tensor:
    """Of unit gain: with a fresh layer's small weights every softmax would be nearly uniform."""
    noise = torch.randn(like.shape, device=device)
    if name == "norm.weight":
        return 1 + 0.1 * noise
    return noise * (0.1 if like.dim() == 1 else like[0].numel() ** -0.5)


def _with_last(function: Callable[..., Tensor], last: object, *tensors: Tensor) -> Tensor:
    return function(*tensors, last)


def _with_gaps(tensor: Tensor) -> Tensor:
    """The same numbers, every row's in the left half of a row of memory."""
    return torch.cat((tensor, tensor), dim=-1)[..., : tensor.shape[-1]]


def _laid_out(layout: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers, or, expanded, ones."""
    if layout == EXPANDED:
        return torch.ones((), dtype=dtype, device=device).expand(shape)
    if layout == TRANSPOSED:
        axes = range(len(shape))[::-1]
        return torch.randn(*shape[::-1], device=device).to(dtype).permute(*axes)
    grad = torch.randn(shape, device=device).to(dtype)
    return _with_gaps(grad) if layout == SLICED else grad


def _memory(gradient: str, options: dict[str, object]) -> str:
    """What is said of memory that is not dense."""
    notes = [f"do {gradient}"] if gradient != DENSE else []
    notes += ["strided"] if options.get("strided") else []
    return "".join(f", {note}" for note in notes)
