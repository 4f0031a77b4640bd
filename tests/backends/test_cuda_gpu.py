"""The CUDA backend on the GPU at hand; without one, tests/simt runs the same kernels."""

import pytest
import torch

from pvt_kernels import SRAttention, attention, feed_forward, spatial_reduction, use_backend
from pvt_kernels.backends import AttentionInputs
from pvt_kernels.backends.reference import attention as attention_reference
from pvt_kernels.backends.reference import feed_forward as feed_forward_reference
from pvt_kernels.backends.reference import spatial_reduction as reduction_reference

from ..error_budget import check_error_budget, with_gradients
from ..ops.cases import LOW_DTYPES, skip_unless_supported
from ..ops.cases import attention as attention_cases
from ..ops.cases import feed_forward as feed_forward_cases
from ..ops.cases import spatial_reduction as reduction_cases

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU")


def skip_unless_supported_here(dtype):
    skip_unless_supported("cuda", AttentionInputs(GPU, dtype, 64, False))


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 3000, 950, 2, 64), (1, 190, 95, 5, 32), (1, 129, 65, 1, 128), (1, 7, 33, 3, 40)]
)
def test_attention(shape, dtype):
    skip_unless_supported_here(dtype)
    B, N, _, heads, d = shape
    inputs = [t.to(GPU) for t in attention_cases.random_inputs(*shape, dtype=dtype)]

    def definition(q, k, v):
        return attention_reference.attention(q, k, v, d**-0.5)

    samples = [(inputs, torch.randn(B, N, heads, d, device=GPU))]
    with use_backend("cuda"):
        check_error_budget(attention, definition, samples, attention_cases.NAMES)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 200, 304, 64, 8), (1, 41, 27, 320, 2), (3, 7, 13, 16, 1)])
def test_spatial_reduction(shape, dtype):
    skip_unless_supported_here(dtype)
    B, H, W, C, R = shape
    inputs = [t.to(GPU) for t in reduction_cases.random_inputs(*shape, dtype)]
    samples = [(inputs, torch.randn(B, (H // R) * (W // R), C, device=GPU))]
    op = reduction_cases.at_size(spatial_reduction, H, W)
    definition = reduction_cases.at_size(reduction_reference.spatial_reduction, H, W)
    with use_backend("cuda"):
        check_error_budget(op, definition, samples, reduction_cases.NAMES)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        feed_forward_cases.Case(2, 200, 304, 64, 512),
        feed_forward_cases.Case(3, 25, 38, 64, 256, relu_before_conv=True),
        feed_forward_cases.Case(1, 41, 27, 40, 104, activation="relu"),
        feed_forward_cases.Case(2, 200, 304, 64, 512, conv=False),
    ],
    ids=str,
)
def test_feed_forward(case, dtype):
    skip_unless_supported_here(dtype)
    inputs = [t.to(GPU) for t in feed_forward_cases.random_inputs(case, dtype)]
    samples = [(inputs, torch.randn(case.B, case.H * case.W, case.C, device=GPU))]
    op, definition = (
        feed_forward_cases.of_tensors(function, case)
        for function in (feed_forward, feed_forward_reference.feed_forward)
    )
    names = feed_forward_cases.NAMES if case.conv else feed_forward_cases.PLAIN_NAMES
    with use_backend("cuda"):
        check_error_budget(op, definition, samples, (*names, "dfc2_bias"))


def test_every_run_gives_the_same_bits():
    skip_unless_supported_here(torch.float16)
    layer = SRAttention(64, 1, sr_ratio=8).half().to(GPU)
    x = torch.randn(2, 100 * 152, 64, dtype=torch.float16, device=GPU)
    dy = torch.randn_like(x)
    with use_backend("cuda"):
        first, *others = (with_gradients(lambda x: layer(x, 100, 152), [x], dy) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))
