"""What the tests of the ops share: backends, dtypes, and in the modules below an op's inputs."""

from collections.abc import Iterable

import pytest
import torch

from pvt_kernels.backends import Inputs
from pvt_kernels.backends.registry import BACKENDS

from ...error_budget import Budget

# those that run on the CPU; the CUDA backend's kernels run in tests/simt, and on a GPU in
# test_cuda.py
BACKEND_PARAMS = tuple(name for name in BACKENDS if name != "cuda")
# those whose kernels are compiled, not interpreted
FAST_BACKENDS = tuple(name for name in BACKEND_PARAMS if name != "triton")
# those with an oracle above them
LOW_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def skip_unless_supported(backend: str, inputs: Inputs) -> None:
    reasons = BACKENDS[backend].not_supported_reasons(inputs)
    if reasons:
        pytest.skip(f"{backend}: {'; '.join(reasons)}")


def budget_cases(whats: Iterable[object]) -> list:
    """Parameters of what (a shape, a configuration), dtype and backend, the backends in turn.

    bf16 in Triton's interpreter is fp32, rounded at the end, which the second of `whats` shows.
    """
    whats = list(whats)
    return [
        pytest.param(what, dtype, backend, id=f"{backend}-{what}-{dtype}")
        for what in whats
        for dtype in LOW_DTYPES
        for backend in BACKEND_PARAMS
        if (backend, dtype) != ("triton", torch.bfloat16) or what == whats[1]
    ]


def trials(backend: str, budget: Budget) -> int | None:
    """How many of the budget's samples a backend is tried on; None: all.

    Fewer in Triton's interpreter, which takes seconds for each: its results are the same on every
    CPU, so that it is enough to have made sure of them once.
    """
    return min(max(2, len(budget.samples) // 8), 10) if backend == "triton" else None
