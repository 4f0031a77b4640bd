"""The attention's backward alone, eager and in a CUDA graph, each contender in its own process.

A graph of a backward reads what the forward saved, which lives as long as the forward's output
does: whoever replays the graph has to keep that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvt_kernels import attention, use_backend
from pvt_kernels.benchmarking.accuracy import relative_error
from pvt_kernels.benchmarking.cases import DTYPES
from pvt_kernels.benchmarking.shapes import STAGES, stage_shape
from steps.device import BATCH, CUDA, DEVICE, KINDS, SIZE, run_parts, synchronize
from steps.record import record, run_command, seconds_left, short
from steps.sanitizer import MEMCHECK, watch
from steps.timers import own_stream

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
OWN = ("triton", "cuda") if CUDA else ("triton", "cpu")
FORCED = {**KINDS, "math": SDPBackend.MATH} if CUDA else {"math": SDPBackend.MATH}
CONTENDERS = (*OWN, "sdpa", *FORCED)
EAGER, CAPTURED, REPLAYS = (20, 3, 50) if CUDA else (2, 1, 2)
AT_ONCE = 4 if CUDA else 1
# of peers, which add in another order in every run
ALLOWED = 1e-2


def attention_of(name: str) -> Attention:
    """(B, N, heads, d) queries to (B, M, heads, d) keys and values."""

    def package(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with use_backend(name):
            return attention(q, k, v)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if name == "sdpa":
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        with sdpa_kernel(FORCED[name]):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return package if name in OWN else sdpa


def inputs_of(stage: int, dtype: str) -> list[Tensor]:
    """As a layer has them: keys and values are halves of one tensor."""
    shape = stage_shape(stage, SIZE, BATCH)
    torch.manual_seed(stage)
    heads = (shape.heads, shape.dim // shape.heads)
    q = torch.randn(BATCH, shape.queries, *heads, device=DEVICE).to(DTYPES[dtype])
    kv = torch.randn(BATCH, shape.keys, 2, *heads, device=DEVICE).to(DTYPES[dtype])
    return [t.detach().requires_grad_() for t in (q, *kv.unbind(2))]


def compare(name: str, stage: int, dtype: str, eager: int, replays: int, note: str) -> None:
    """Backwards of one forward, bit for bit: eager ones, and those of a graph."""
    tensors = inputs_of(stage, dtype)
    with own_stream():
        out = attention_of(name)(*tensors)
        gradient = torch.randn_like(out)

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, tensors, gradient, retain_graph=True)

        first = backward()
        same_eager = sum(_equal(backward(), first) for _ in range(eager))
        finite = all(bool(t.isfinite().all()) for t in first)
        synchronize()
        replay, captured = _captured(backward)
        same_replays, furthest = 0, 0.0
        for _ in range(replays):
            replay()
            same_replays += all(_equal(results, first) for results in captured)
        for results in captured:
            pairs = zip(results, first, strict=True)
            furthest = max(furthest, *(relative_error(a, b) for a, b in pairs))
        synchronize()
    same = same_eager == eager and same_replays == replays
    # NaN is not
    good = finite and (same if name in OWN else furthest <= ALLOWED)
    record("graph", contender=name + note, stage=stage, dtype=dtype, ok=good, finite=finite,
           same_eager=f"{same_eager}/{eager}", same_replays=f"{same_replays}/{replays}",
           difference=float(f"{furthest:.2g}"))  # fmt: skip


def _captured(
    backward: Callable[[], tuple[Tensor, ...]],
) -> tuple[Callable[[], None], list[tuple[Tensor, ...]]]:
    """A replay of several backwards, and the tensors to which it writes their results."""
    if not CUDA:
        results = [backward() for _ in range(CAPTURED)]
        return lambda: None, results
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        results = [backward() for _ in range(CAPTURED)]
    return graph.replay, results


def _equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def in_a_process(name: str) -> None:
    command = [sys.executable, "-m", "steps.graphs", "--contender", name]
    status, output = run_command(command, seconds_left() - 2)
    print(output[-3000:], flush=True)
    if status != 0:
        record("failed", part=f"graphs of {name}", status=status, error=short(output[-400:], 400))


def in_memcheck(name: str) -> None:
    watch(MEMCHECK, f"graphs of {name}", "steps.graphs",
          ["--contender", name, "--short"], seconds_left() - 2)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", choices=CONTENDERS, help="this one, in this process")
    parser.add_argument("--short", action="store_true", help="of stage 3 alone, few runs")
    options = parser.parse_args()
    if options.contender is None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            runs = [pool.submit(in_a_process, name) for name in CONTENDERS]
            runs += [pool.submit(in_memcheck, name) for name in OWN]
            for run in runs:
                run.result()
        return
    runs = (STAGES, EAGER, REPLAYS, "")
    if options.short:
        runs = ((3,), 2, 2, ", short")
    stages, eager, replays, note = runs
    run_parts([
        (f"graph of {options.contender}, stage {stage}",
         partial(compare, options.contender, stage, "bf16", eager, replays, note))
        for stage in stages
    ])  # fmt: skip


if __name__ == "__main__":
    main()
