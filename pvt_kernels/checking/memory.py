"""Memory: uninitialised memory that shows, and what a layer adds to training's peak."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from pvt_kernels.backends import use_backend
from pvt_kernels.benchmarking import memory
from pvt_kernels.benchmarking.contenders import seeded_state
from pvt_kernels.benchmarking.shapes import LayerShape
from pvt_kernels.layers import SRAttention

# of what a layer may add to training's peak, as a multiple of what its backward needs
LIMIT = 1.15
# Calls one after the other, as of a network's layers: the peaks differ by what the calls keep, and
# have in common what one backward takes besides, and the gradients of the weights.
FEW, MANY = 2, 6
# of the rows of lse, and of what the reduction's backward needs, which are in fp32
FP32 = 4


@contextmanager
def nan_filled() -> Iterator[None]:
    """Within it whatever PyTorch allocates reads as NaN until it is written.

    Results and workspaces of kernels are among it. Integers read as their largest, which makes
    bytes that are taken for floating-point numbers NaN too.
    """
    mode = torch.get_deterministic_debug_mode()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        # PyTorch's own operations warn where they have no deterministic form
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            torch.utils.deterministic.fill_uninitialized_memory = filled


def kept_bytes(shape: LayerShape, dtype: torch.dtype) -> int:
    """What a layer's backward needs of its forward: x, o, lse, and tensors of M rows.

    Those are y, k and v, and in fp32 the reduction's normalised rows and their scale; without a
    reduction y is x.
    """
    tokens = shape.batch * shape.queries * shape.dim * dtype.itemsize
    rows = shape.batch * shape.keys
    lse = FP32 * shape.batch * shape.heads * shape.queries
    keys_values = 2 * rows * shape.dim * dtype.itemsize
    reduced = rows * (shape.dim * dtype.itemsize + FP32 * (shape.dim + 1))
    return 2 * tokens + lse + keys_values + (reduced if shape.sr_ratio > 1 else 0)


@dataclass(frozen=True)
class LayerMemory:
    """Bytes that a layer adds to training's peak, and that it should at least."""

    added: int
    kept: int

    @property
    def ratio(self) -> float:
        return self.added / self.kept

    @property
    def within(self) -> bool:
        return self.ratio <= LIMIT


def layer_memory(
    backend: str,
    shape: LayerShape,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerMemory:
    """Of training steps of FEW and of MANY calls of a layer, the peaks' difference for each."""
    layer = SRAttention(shape.dim, shape.heads, qkv_bias=True, sr_ratio=shape.sr_ratio)
    layer.load_state_dict(seeded_state(shape))
    layer.to(device, dtype)
    x = torch.randn(shape.batch, shape.queries, shape.dim, device=device).to(dtype).requires_grad_()
    dy = torch.randn_like(x)

    def step(calls: int) -> None:
        y = x
        with use_backend(backend):
            for _ in range(calls):
                y = layer(y, shape.height, shape.width)
        torch.autograd.grad(y, [x, *layer.parameters()], dy)

    # kernels are compiled and loaded before
    step(FEW)
    peaks = [_peak(partial(step, calls), device) for calls in (FEW, MANY)]
    return LayerMemory((peaks[1] - peaks[0]) // (MANY - FEW), kept_bytes(shape, dtype))


def _peak(call: Callable[[], object], device: torch.device) -> int:
    """The bytes that a call takes beyond what was there, as PyTorch's allocator counts them."""
    if device.type == "cuda":
        return memory.growth(call, device).bytes
    # On a CPU the profiler's record of each allocation; it would also log that there is no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    if highest == 0:
        raise RuntimeError("PyTorch's profiler has recorded no allocation")
    return highest
