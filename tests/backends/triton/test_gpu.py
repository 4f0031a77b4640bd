"""The Triton backend on the GPU at hand; without one, triton/ interprets the kernels."""

import pytest
import torch

from pvt_kernels import (
    SRAttention,
    attention,
    feed_forward,
    multi_head_attention,
    spatial_reduction,
    use_backend,
)
from pvt_kernels.backends import AttentionInputs
from pvt_kernels.backends.reference import attention as attention_reference
from pvt_kernels.backends.reference import feed_forward as feed_forward_reference
from pvt_kernels.backends.reference import multi_head_attention as mha_reference
from pvt_kernels.backends.reference import spatial_reduction as reduction_reference

from ...error_budget import check_error_budget, with_gradients
from ...ops.cases import LOW_DTYPES, skip_unless_supported
from ...ops.cases import attention as attention_cases
from ...ops.cases import feed_forward as feed_forward_cases
from ...ops.cases import spatial_reduction as reduction_cases

GPU = torch.device("cuda", 0)
HALF = (torch.float16, torch.bfloat16)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU")


@pytest.fixture(autouse=True)
def _triton():
    skip_unless_supported("triton", AttentionInputs(GPU, torch.float16, 64, False))
    with use_backend("triton"):
        yield


def layer_and_tokens(device=GPU):
    """PVT's first layer, in training, and tokens of a map of 100 x 152."""
    layer = SRAttention(64, 1, qkv_bias=True, sr_ratio=8).half().to(device)
    return layer, torch.randn(2, 100 * 152, 64, dtype=torch.float16, device=device)


def step(layer, x, dy):
    """The output, and the gradients of the tokens and of every parameter."""
    y = layer(x, 100, 152)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 3000, 950, 2, 64), (1, 190, 95, 5, 32), (1, 129, 65, 1, 128), (1, 7, 33, 3, 40)]
)
def test_attention(shape, dtype):
    B, N, _, heads, d = shape
    inputs = [t.to(GPU) for t in attention_cases.random_inputs(*shape, dtype=dtype)]

    def definition(q, k, v):
        return attention_reference.attention(q, k, v, d**-0.5)

    samples = [(inputs, torch.randn(B, N, heads, d, device=GPU))]
    check_error_budget(attention, definition, samples, attention_cases.NAMES)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 200, 304, 64, 8), (1, 41, 27, 320, 2), (3, 7, 13, 16, 1)])
def test_spatial_reduction(shape, dtype):
    B, H, W, C, R = shape
    inputs = [t.to(GPU) for t in reduction_cases.random_inputs(*shape, dtype)]
    samples = [(inputs, torch.randn(B, (H // R) * (W // R), C, device=GPU))]
    op = reduction_cases.at_size(spatial_reduction, H, W)
    definition = reduction_cases.at_size(reduction_reference.spatial_reduction, H, W)
    check_error_budget(op, definition, samples, reduction_cases.NAMES)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("C", "heads"), [(32, 1), (64, 1), (128, 2), (128, 4), (96, 3)])
def test_fused_multi_head_attention(C, heads, dtype):
    inputs = [torch.randn(2, 1000, C), torch.randn(2, 95, C)]
    for rows in (C, 2 * C, C):
        inputs += [torch.randn(rows, C) * C**-0.5, torch.randn(rows)]
    samples = [([t.to(GPU, dtype) for t in inputs], torch.randn(2, 1000, C, device=GPU))]

    def op(*tensors):
        return multi_head_attention(*tensors, heads)

    def definition(*tensors):
        return mha_reference.multi_head_attention(*tensors, heads, (C // heads) ** -0.5)

    names = ("out", "dx", "dy", "dWq", "dbq", "dWkv", "dbkv", "dWo", "dbo")
    check_error_budget(op, definition, samples, names)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        # several slabs of one image each, of whole images, odd channels
        feed_forward_cases.Case(2, 200, 304, 64, 512),
        feed_forward_cases.Case(3, 25, 38, 64, 256, relu_before_conv=True),
        feed_forward_cases.Case(1, 41, 27, 40, 100, activation="relu"),
        feed_forward_cases.Case(2, 200, 304, 64, 512, conv=False),
    ],
    ids=str,
)
def test_feed_forward(case, dtype):
    inputs = [t.to(GPU) for t in feed_forward_cases.random_inputs(case, dtype)]
    samples = [(inputs, torch.randn(case.B, case.H * case.W, case.C, device=GPU))]
    op, definition = (
        feed_forward_cases.of_tensors(function, case)
        for function in (feed_forward, feed_forward_reference.feed_forward)
    )
    names = feed_forward_cases.NAMES if case.conv else feed_forward_cases.PLAIN_NAMES
    check_error_budget(op, definition, samples, (*names, "dfc2_bias"))


def test_the_feed_forward_holds_no_more_than_slabs():
    """Forward and backward at 800 x 1216, whose hidden layer is 249 MB in fp16."""
    case = feed_forward_cases.Case(4, 200, 304, 64, 512)
    inputs = [t.to(GPU).requires_grad_() for t in feed_forward_cases.random_inputs(case, HALF[0])]
    op, dy = feed_forward_cases.of_tensors(feed_forward, case), torch.randn_like(inputs[0])
    result = op(*inputs)
    torch.autograd.grad(result, inputs, dy)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = op(*inputs)
    gradients = torch.autograd.grad(result, inputs, dy)
    kept = sum(t.nbytes for t in (result, *gradients))
    # half of the L2 of any GPU, the halo, products of slabs and partial sums
    assert torch.cuda.max_memory_allocated() - before - kept < 100 * 2**20


def test_every_run_gives_the_same_bits():
    layer, x = layer_and_tokens()
    dy = torch.randn_like(x)
    first, *others = (with_gradients(lambda x: layer(x, 100, 152), [x], dy) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))


def test_a_cuda_graph_captures_forward_and_backward():
    layer, x = layer_and_tokens()
    x, dy = x.requires_grad_(), torch.randn_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    # the kernels are compiled and loaded before, as PyTorch asks of what is captured
    with torch.cuda.stream(side):
        for _ in range(3):
            step(layer, x, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer, x, dy)
    for _ in range(2):
        with torch.no_grad():
            x.normal_()
        dy.normal_()
        graph.replay()
        expected = step(layer, x, dy)
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_a_compiled_layer_runs_in_cuda_graphs():
    layer, x = layer_and_tokens()
    x, dy = x.requires_grad_(), torch.randn_like(x)
    expected = step(layer, x, dy)
    torch.compiler.reset()
    compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        y = compiled(x, 100, 152)
        actual = [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]
    torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.01)


def test_a_captured_graph_reads_the_weight_at_each_replay():
    layer, x = layer_and_tokens()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        for _ in range(2):
            layer(x, 100, 152)
        with torch.cuda.graph(graph):
            captured = layer(x, 100, 152)
        layer.sr.weight.mul_(-1)
        graph.replay()
        assert torch.equal(captured, layer(x, 100, 152))


def test_nothing_waits_for_the_gpu():
    layer, x = layer_and_tokens()
    x, dy = x.requires_grad_(), torch.randn_like(x)
    step(layer, x, dy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = step(layer, x, dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(t.isfinite().all() for t in results)


def test_kernels_run_on_the_current_stream():
    """Behind the tokens, which that stream writes after a long wait."""
    layer, x = layer_and_tokens()
    dy, late = torch.randn_like(x), torch.full_like(x, float("nan")).requires_grad_()
    expected = step(layer, x.requires_grad_(), dy)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        with torch.no_grad():
            late.copy_(x)
        actual = step(layer, late, dy)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="PyTorch sees no second NVIDIA GPU")
def test_tensors_of_a_device_that_is_not_the_current_one():
    second = torch.device("cuda", 1)
    skip_unless_supported("triton", AttentionInputs(second, torch.float16, 64, False))
    layer, x = layer_and_tokens(second)
    dy = torch.randn_like(x)
    with torch.cuda.device(second):
        expected = step(layer, x.requires_grad_(), dy)
    with torch.cuda.device(GPU):
        actual = step(layer, x, dy)
    for a, e in zip(actual, expected, strict=True):
        assert a.device == second
        assert torch.equal(a, e)
