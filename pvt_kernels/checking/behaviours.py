"""What holds beside small errors: the same bits in every run, CUDA graphs, streams, no waiting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from pvt_kernels.backends import use_backend
from pvt_kernels.benchmarking.contenders import seeded_state
from pvt_kernels.benchmarking.shapes import LayerShape
from pvt_kernels.checking.memory import nan_filled
from pvt_kernels.layers import SRAttention

RERUNS = 4
# of the GPU's clock: about a tenth of a second
SLEEP_CYCLES = 200_000_000
BATCH = 2


class Step:
    """A layer's forward and backward, with tensors of its own."""

    def __init__(
        self, backend: str, shape: LayerShape, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.backend, self.size = backend, (shape.height, shape.width)
        layer = SRAttention(shape.dim, shape.heads, qkv_bias=True, sr_ratio=shape.sr_ratio)
        layer.load_state_dict(seeded_state(shape))
        self.layer = layer.to(device, dtype)
        sizes = (shape.batch, shape.queries, shape.dim)
        self.x = torch.randn(sizes, device=device).to(dtype).requires_grad_()
        self.dy = torch.randn_like(self.x)

    def __call__(self, x: Tensor | None = None) -> list[Tensor]:
        """The output, and the gradients of the tokens and of every parameter."""
        x = self.x if x is None else x
        with use_backend(self.backend):
            y = self.layer(x, *self.size)
        return [y.detach(), *torch.autograd.grad(y, [x, *self.layer.parameters()], self.dy)]


def same_bits(step: Step) -> bool:
    """In every run, whatever the memory holds that results and workspaces are made of."""
    first = step()
    for run in range(RERUNS):
        with nan_filled() if run % 2 else nullcontext():
            if not _equal(step(), first):
                return False
    return True


def graph_equals_eager(step: Step) -> bool:
    """A CUDA graph of forward and backward, replayed on other numbers."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        # the kernels are compiled and loaded before, as PyTorch asks of what is captured
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            captured = step()
        for _ in range(2):
            with torch.no_grad():
                step.x.normal_()
            step.dy.normal_()
            graph.replay()
            if not _equal([t.clone() for t in captured], step()):
                return False
    return True


def follows_a_side_stream(step: Step) -> bool:
    """The kernels run behind tokens that another stream writes after a long wait."""
    expected = step()
    late = torch.full_like(step.x, float("nan")).requires_grad_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(SLEEP_CYCLES)
        with torch.no_grad():
            late.copy_(step.x)
        actual = step(late)
        torch.cuda.current_stream().synchronize()
    return _equal(actual, expected)


def never_waits(step: Step) -> bool:
    """The host enqueues a training step without one wait for the GPU."""
    step()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return False
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return True


# (name, what holds)
Behaviour = tuple[str, Callable[[Step], bool]]
EVERYWHERE: tuple[Behaviour, ...] = (("same bits in every run", same_bits),)
ON_A_GPU: tuple[Behaviour, ...] = (
    ("a CUDA graph equals eager", graph_equals_eager),
    ("a side stream is followed", follows_a_side_stream),
    ("the host never waits", never_waits),
)


def behaviours(device: torch.device) -> tuple[Behaviour, ...]:
    """Those that can be looked at on a device."""
    return EVERYWHERE + (ON_A_GPU if device.type == "cuda" else ())


def shapes(device: torch.device) -> tuple[LayerShape, LayerShape]:
    """One head and a large reduction; several heads and a small one."""
    height, width = (100, 152) if device.type == "cuda" else (24, 37)
    return (
        LayerShape(64, 1, 8, height, width, BATCH),
        LayerShape(320, 5, 2, height // 2, width // 2, BATCH),
    )


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
