"""Compiles what the check will run, in several processes that share the compilers' caches.

One after the other, the Triton kernels of all shapes and dtypes take minutes to compile.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import torch

from pvt_kernels.backends import use_backend
from pvt_kernels.benchmarking.cases import DTYPES, FORWARD, LAYER, TRAINING, Case
from pvt_kernels.benchmarking.shapes import STAGES
from pvt_kernels.checking.cases import odd_cases, stage_cases
from pvt_kernels.checking.error_budget import with_gradients
from pvt_kernels.checking.jobs import Plan, reasons_against
from pvt_kernels.checking.timings import compile_peer

BACKEND = "triton"
# who has an op has its kernels: two processes would compile them twice
OPS = (
    ("attention",),
    ("spatial_reduction",),
    ("multi_head_attention", "SRAttention"),
    ("feed_forward",),
)
MOST_PROCESSES = 8
# of GPU memory, that a process may need
PROCESS_BYTES = 4e9


def warm_up(plan: Plan) -> None:
    """Compile for a GPU; nothing elsewhere.

    What fails here fails again in the check, which then records it.
    """
    if plan.device != "cuda":
        return
    parts = []
    if BACKEND in plan.backends:
        parts += [
            partial(_compile_kernels, plan, ops, dtype) for dtype in plan.dtypes for ops in OPS
        ]
    if plan.timed is not None:
        parts += [partial(_compile_peers, plan, stage) for stage in STAGES]
    room = int(torch.cuda.mem_get_info()[0] / PROCESS_BYTES)
    workers = min(MOST_PROCESSES, (os.cpu_count() or 2) // 2, room, len(parts))
    if workers < 2:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in [pool.submit(part) for part in parts]:
            try:
                future.result()
            except (BrokenProcessPool, RuntimeError, OSError):
                continue


def _compile_kernels(plan: Plan, ops: tuple[str, ...], dtype: str) -> None:
    for case in (*odd_cases(), *stage_cases(plan.size, plan.batch)):
        if case.op not in ops:
            continue
        inputs, grad = case.sample(DTYPES[dtype], plan.torch_device)
        if reasons_against((BACKEND,), case.call, inputs)[BACKEND]:
            continue
        with use_backend(BACKEND), torch.no_grad():
            case.call(*inputs)
        with use_backend(BACKEND):
            with_gradients(case.call, inputs, grad)


def _compile_peers(plan: Plan, stage: int) -> None:
    for mode in (FORWARD, TRAINING):
        assert plan.timed is not None
        subject = f"stage {stage}"
        compile_peer(Case(LAYER, subject, plan.size, mode, plan.timed, plan.batch, plan.device))
