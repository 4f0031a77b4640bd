"""What the GPU reaches at most: a copy in its memory, a large matrix product."""

from __future__ import annotations

import statistics

import torch

from pvt_kernels.benchmarking import environment
from pvt_kernels.benchmarking.timing import seconds
from steps.device import CUDA, DEVICE, run_parts
from steps.record import record
from steps.timers import WARM_UP

COPY_BYTES, SIZE, RUNS = (2**32, 8192, 10) if CUDA else (2**20, 64, 1)


def copy() -> None:
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    rate = 2 * COPY_BYTES / _median(lambda: target.copy_(source)) / 1e9
    record("ceiling", name="copy, GB/s read and written", value=round(rate, 1))


def product(dtype: torch.dtype) -> None:
    a, b = (torch.randn(SIZE, SIZE, device=DEVICE).to(dtype) for _ in range(2))
    rate = 2 * SIZE**3 / _median(lambda: a @ b) / 1e12
    name = f"product of {SIZE}^3 in {str(dtype).removeprefix('torch.')}, TFLOP/s"
    record("ceiling", name=name, value=round(rate, 1))


def clocks() -> None:
    record("clocks", **environment.gpu_state())


def _median(call) -> float:
    samples = [seconds(call, DEVICE) for _ in range(WARM_UP + RUNS)]
    return statistics.median(samples[WARM_UP:])


def main() -> None:
    run_parts([
        ("copy", copy),
        ("bf16", lambda: product(torch.bfloat16)),
        ("fp16", lambda: product(torch.float16)),
        ("clocks", clocks),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
