"""What the host does for layers on the stand-in for a GPU, as JSON: python -m tests.host.facts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import torch

from pvt_kernels import SRAttention, use_backend
from pvt_kernels.models import pvt_small
from pvt_kernels.ops import sr_attention

from . import stand_in
from .host_time import STAGES


def layer_and_tokens(stage: int, size: int = 2) -> tuple[SRAttention, torch.Tensor, int]:
    """In fp16, on a map of size x size patches."""
    channels, heads, sr_ratio = STAGES[stage]
    layer = SRAttention(channels, heads, qkv_bias=True, sr_ratio=sr_ratio).half()
    side = size * sr_ratio
    return layer, torch.randn(2, side**2, channels).half().requires_grad_(), side


def counts(run: Callable[[], object]) -> dict[str, object]:
    run()
    stand_in.reset()
    run()
    launches = stand_in.launched()
    calls, allocations = stand_in.calls_of(run)
    return {"launches": launches, "calls": calls, "allocations": allocations}


def of_a_stage(stage: int) -> dict[str, object]:
    layer, x, side = layer_and_tokens(stage)

    def forward() -> torch.Tensor:
        return layer(x, side, side)

    def step() -> None:
        out = forward()
        out.backward(out.detach())

    facts: dict[str, object] = {}
    with stand_in.watched_memory():
        step()
        torch.no_grad()(forward)()
    facts["inference"] = counts(torch.no_grad()(forward))
    facts["forward"] = counts(forward)
    facts["step"] = counts(step)
    return facts


def kernels_at_many_sizes() -> dict[str, list[int]]:
    """How many kernels were compiled, and loaded, before and after other sizes than the first."""
    counted = []
    layer, _, _ = layer_and_tokens(2)
    for H, W in ((8, 8), (9, 14), (32, 44), (56, 52), (64, 8), (100, 100)):
        x = torch.randn(1, H * W, 128).half().requires_grad_()
        layer(x, H, W).sum().backward()
        counted.append((len(stand_in.compiled), stand_in.library.stand_in_modules()))
    first, last = counted[3], counted[-1]
    return {"first": [*first], "last": [*last]}


def refused_launch() -> str:
    layer, x, side = layer_and_tokens(1)
    layer(x, side, side)
    stand_in.reset(failing_launch=1)
    try:
        layer(x, side, side)
    except RuntimeError as error:
        return str(error)
    finally:
        stand_in.reset()
    return ""


def threads_and_evictions() -> dict[str, object]:
    """Eight threads at sizes that push each other's plans out of a cache of two."""
    layer, _, _ = layer_and_tokens(4)
    failures: list[str] = []

    def work(first: int) -> None:
        try:
            for i in range(60):
                side = 2 + (first + i) % 7
                x = torch.randn(1, side**2, 512).half().requires_grad_()
                layer(x, side, side).sum().backward()
        except Exception as error:
            failures.append(repr(error))

    kept, sr_attention._calls = sr_attention._calls, sr_attention.Recent(2)
    # one autograd thread is the caller's own on the CPU
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = len(sr_attention._calls)
    sr_attention._calls = kept
    return {"failures": failures, "held": held}


def compiled_layer(stage: int) -> dict[str, object]:
    """A step of a compiled layer: its operators, and what they launch and call."""
    layer, x, side = layer_and_tokens(stage)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)

    def step() -> None:
        out = compiled(x, side, side)
        out.backward(out.detach())

    return counts(step)


def compiled_model() -> dict[str, object]:
    torch.compiler.reset()
    model = pvt_small(num_classes=3).half()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    images = torch.randn(1, 3, 64, 64).half()
    stand_in.reset()
    out = compiled(images)
    out.sum().backward()
    return {"shape": list(out.shape), "launches": len(stand_in.launched())}


def main() -> None:
    stand_in.install()
    torch.set_num_threads(1)
    facts: dict[str, object] = {}
    with use_backend("triton"):
        facts["stages"] = {stage: of_a_stage(stage) for stage in STAGES}
        facts["sizes"] = kernels_at_many_sizes()
        facts["refused"] = refused_launch()
        facts["threads"] = threads_and_evictions()
        facts["compiled"] = {stage: compiled_layer(stage) for stage in (1, 3, 4)}
        facts["model"] = compiled_model()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
