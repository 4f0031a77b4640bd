"""What the host does for layers on the stand-in for a GPU, as JSON: python -m tests.host.facts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import torch
from transformers import SegformerConfig, SegformerModel

from pvt_kernels import SRAttention, patch, use_backend
from pvt_kernels.models import pvt_small
from pvt_kernels.ops import repeated, sr_attention

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
    facts["of a graph"] = fault_in_a_graph(step, [x, *layer.parameters()])
    facts["of a graph without parameters"] = fault_in_a_graph(step, [x])
    facts["inference"] = counts(torch.no_grad()(forward))
    facts["forward"] = counts(forward)
    facts["step"] = counts(step)
    facts["attributes"] = stand_in.host_cuda.attributes()
    return facts


def fault_in_a_graph(run: Callable[[], object], given: list[torch.Tensor]) -> str:
    """Which launch, replayed, would read what is neither given nor made within; "" if none."""
    try:
        with stand_in.watched_memory(given):
            run()
    except RuntimeError as error:
        return str(error)
    return ""


def kernels_at_many_sizes() -> dict[str, list[int]]:
    """How many kernels were compiled, and how many of them loaded, after each of many sizes."""
    compiled, loaded = [], []
    layer, _, _ = layer_and_tokens(2)
    # the first sizes have the fold's forms for many and for few parts
    for H, W in ((8, 8), (100, 100), (9, 14), (32, 44), (56, 52), (64, 8), (97, 103)):
        x = torch.randn(1, H * W, 128).half().requires_grad_()
        layer(x, H, W).sum().backward()
        compiled.append(len(stand_in.compiled))
        loaded.append(stand_in.library.stand_in_modules())
    return {"compiled": compiled, "loaded": loaded}


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


def kernel_of_two_plans() -> list[str]:
    """Of plans with more and with less shared memory than every kernel may have, in turns."""
    plans = [
        stand_in.host_cuda.plan_spatial_reduction_forward(
            (1, 2, 2, channels, 1, "float16", "float16", 1e-5, 0), (4 * channels, channels), False
        )
        for channels in (4096, 64)
    ]
    stand_in.reset()
    for plan in plans * 2:
        plan.launch(0, [256] * 7)
    return stand_in.launched()


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

    kept = sr_attention._calls, repeated._kept
    sr_attention._calls, repeated._kept = sr_attention.Recent(2), repeated.Recent(2)
    # one autograd thread is the caller's own on the CPU
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = len(sr_attention._calls)
    sr_attention._calls, repeated._kept = kept
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


def compiled_models() -> dict[str, int]:
    """How much a step of each launches, compiled without a graph break."""
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 2],
        hidden_sizes=[32, 64],
        num_attention_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
    )
    segformer = SegformerModel(config).eval()
    patch(segformer)
    launches = {}
    for name, model in (("pvt_small", pvt_small(num_classes=3)), ("segformer", segformer)):
        torch.compiler.reset()
        compiled = torch.compile(model.half(), backend="aot_eager", fullgraph=True)
        stand_in.reset()
        out = compiled(torch.randn(1, 3, 64, 64).half())
        out = out if isinstance(out, torch.Tensor) else out.last_hidden_state
        out.sum().backward()
        launches[name] = len(stand_in.launched())
    return launches


def main() -> None:
    stand_in.install()
    torch.set_num_threads(1)
    facts: dict[str, object] = {}
    for backend in ("triton", "cuda"):
        with use_backend(backend):
            facts[backend] = {
                "stages": {stage: of_a_stage(stage) for stage in STAGES},
                "refused": refused_launch(),
                "threads": threads_and_evictions(),
                "compiled": {stage: compiled_layer(stage) for stage in (1, 3, 4)},
            }
    with use_backend("triton"):
        facts["sizes"] = kernels_at_many_sizes()
        facts["models"] = compiled_models()
    facts["shared"] = kernel_of_two_plans()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
