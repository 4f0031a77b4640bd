"""What the host does for a layer, in microseconds, without a GPU: make host-time.

Each layer runs on tiny CPU tensors: on this package's GPU backends with a stand-in for the driver,
whose launches do nothing, and beside that on PyTorch's SDPA. PyTorch's matrix products are computed
in all. So that they take next to no time, layers have a quarter of PVT's channels and maps of one
patch: what the host does depends on neither. Contenders take turns; of their times stands the
median.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import process_time

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pvt_kernels import SRAttention, use_backend

from . import stand_in

# PVT's four stages: channels, heads, sr_ratio
STAGES = {1: (64, 1, 8), 2: (128, 2, 4), 3: (320, 5, 2), 4: (512, 8, 1)}
NARROWER = 4
ROUNDS, CALLS = 40, 20


@dataclass(frozen=True)
class Contender:
    """A layer to time, `backend` None for PyTorch's."""

    layer: nn.Module
    x: Tensor
    size: int
    backend: str | None

    def forward(self) -> Tensor:
        return self.layer(self.x, self.size, self.size)

    def step(self) -> None:
        out = self.forward()
        torch.autograd.grad(out, [self.x, *self.layer.parameters()], out.detach())


class SDPALayer(nn.Module):
    """The published layer on torch.nn.functional.scaled_dot_product_attention."""

    def __init__(self, layer: SRAttention) -> None:
        super().__init__()
        self.q, self.kv, self.proj, self.heads = layer.q, layer.kv, layer.proj, layer.num_heads
        self.reduces = layer.sr_ratio > 1
        if self.reduces:
            self.sr, self.norm = layer.sr, layer.norm

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).permute(0, 2, 1, 3)
        if self.reduces:
            y = self.sr(x.permute(0, 2, 1).reshape(B, C, H, W)).reshape(B, C, -1)
            x = self.norm(y.permute(0, 2, 1))
        kv = self.kv(x).reshape(B, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, *kv.unbind(0))
        return self.proj(o.transpose(1, 2).reshape(B, N, C))


def contenders(stage: int, narrower: int = 1) -> dict[str, Contender]:
    """The stage's layer on each backend and on SDPA, with the same tensors."""
    channels, heads, sr_ratio = STAGES[stage]
    channels //= narrower
    layer = SRAttention(channels, heads, qkv_bias=True, sr_ratio=sr_ratio)
    x = torch.randn(1, sr_ratio**2, channels, requires_grad=True)
    sdpa = Contender(SDPALayer(layer), x, sr_ratio, None)
    own = {name: Contender(layer, x, sr_ratio, name) for name in ("triton", "cuda")}
    return own | {"sdpa": sdpa}


def times(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Of one call of each, in microseconds of the processor: what else it runs does not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            backend = name.split()[0]
            with use_backend(backend if backend != "sdpa" else "cpu"):
                run()
                start = process_time()
                for _ in range(CALLS):
                    run()
                taken[name].append((process_time() - start) / CALLS * 1e6)
    return {name: median(values) for name, values in taken.items()}


def main() -> None:
    stand_in.install(fused_channels=128 // NARROWER)
    torch.set_num_threads(1)
    table = Table(
        *("stage", "backend", "direction", "us", "of sdpa's", "calls", "allocations", "launches")
    )
    totals: dict[tuple[str, str], float] = {}
    for stage in STAGES:
        every = contenders(stage, NARROWER)

        def inference(contender: Contender) -> Callable[[], object]:
            return torch.no_grad()(contender.forward)

        for direction, of in (
            ("forward", inference),
            ("forward, training", lambda c: c.forward),
            ("forward + backward", lambda c: c.step),
        ):
            runs = {name: of(contender) for name, contender in every.items()}
            taken = times(runs)
            for name, us in taken.items():
                key = name, direction
                totals[key] = totals.get(key, 0.0) + us
                counts: tuple[object, ...] = ("", "", "")
                if name != "sdpa":
                    with use_backend(name):
                        stand_in.reset()
                        runs[name]()
                        launches = len(stand_in.launched())
                        counts = (*stand_in.calls_of(runs[name]), launches)
                ratio = "" if name == "sdpa" else f"{us / taken['sdpa']:.2f}"
                table.add_row(str(stage), name, direction, f"{us:.0f}", ratio, *map(str, counts))
    for (name, direction), us in totals.items():
        ratio = "" if name == "sdpa" else f"{us / totals['sdpa', direction]:.2f}"
        table.add_row("all", name, direction, f"{us:.0f}", ratio, "", "", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
