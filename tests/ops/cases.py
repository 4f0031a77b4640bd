"""What the tests of the ops share: the backends to test, and the dtypes."""

import pytest
import torch

from pvt_kernels.backends import Inputs
from pvt_kernels.backends.registry import BACKENDS

# those that run on the CPU; the CUDA backend's kernels run in tests/simt, and on a GPU in
# test_cuda.py
BACKEND_PARAMS = tuple(name for name in BACKENDS if name != "cuda")
# those with an oracle above them
LOW_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def skip_unless_supported(backend: str, inputs: Inputs) -> None:
    reasons = BACKENDS[backend].not_supported_reasons(inputs)
    if reasons:
        pytest.skip(f"{backend}: {'; '.join(reasons)}")
