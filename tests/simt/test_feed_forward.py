"""The CUDA kernels of the feed-forward network, run on the CPU, against the definition in fp64."""

import pytest
import torch

from pvt_kernels.backends.reference import feed_forward as reference

from ..error_budget import check_error_budget, samples_for_a_ratio, with_gradients
from ..ops.cases.feed_forward import NAMES, PLAIN_NAMES, Case, of_tensors, random_inputs
from .counters import Bytes, check_bank_conflicts, check_bytes
from .device import CODES

CALLS = "tests.simt.calls"
# tiles of columns and channels that are not full, every variant; in slabs of few rows
CASES = (
    Case(2, 7, 18, 8, 40),
    Case(1, 6, 5, 8, 16, relu_before_conv=True),
    Case(2, 5, 3, 8, 64, activation="relu"),
    Case(2, 11, 3, 8, 24, conv=False),
)


def on(device, rows):
    """feed_forward(x, H, W, ...) on the device in slabs of so many rows, differentiable."""

    class FeedForward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, H, W, *rest):
            *layers, activation, relu_before_conv = rest
            ctx.call = (x, H, W, *layers[:-1], activation, relu_before_conv)
            ctx.absent = [layer is None for layer in layers]
            return device.run(f"{CALLS}.feed_forward_in_slabs", "forward", rows * W, x, H, W, *rest)

        @staticmethod
        def backward(ctx, dy):
            W = ctx.call[2]
            dx, *gradients = device.run(
                f"{CALLS}.feed_forward_in_slabs", "backward", rows * W, dy, *ctx.call
            )
            gradients = [None if a else g for a, g in zip(ctx.absent, gradients, strict=True)]
            return dx, None, None, *gradients, None, None

    return FeedForward.apply


def check_against_oracle(device, case, rows, dtype):
    tokens = case.H * case.W
    samples = [
        (random_inputs(case, dtype), torch.randn(case.B, tokens, case.C))
        for _ in range(samples_for_a_ratio(rows=case.B * tokens, least=8))
    ]
    names = (*(NAMES if case.conv else PLAIN_NAMES), "dfc2_bias")
    definition = of_tensors(reference.feed_forward, case)
    check_error_budget(of_tensors(on(device, rows), case), definition, samples, names)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_budget(device, code, case):
    device.choose(code)
    check_against_oracle(device, case, 3, code.dtype)


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_slabs_of_any_size(device, case, rows):
    check_against_oracle(device, case, rows, torch.float32)


@pytest.mark.parametrize("multiprocessors", [1, 100])
def test_any_number_of_blocks(device, multiprocessors):
    device.multiprocessors = multiprocessors
    check_against_oracle(device, CASES[0], 6, torch.float32)


def test_the_order_of_the_threads_does_not_matter(device):
    case = CASES[0]
    inputs, dy = random_inputs(case, torch.float16), torch.randn(2, 7 * 18, 8).half()
    results = []
    for device.seed in range(3):
        results.append(with_gradients(of_tensors(on(device, 3), case), inputs, dy))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_without_biases(device):
    case = CASES[0]
    x, *layers = random_inputs(case)
    given, dy = [x, *layers[::2]], torch.randn(2, 7 * 18, 8)
    zeros = [torch.zeros(len(bias)) for bias in layers[1::2]]

    def gradients(*biases):
        def op(x, fc1, conv, fc2):
            pairs = zip((fc1, conv, fc2), biases, strict=True)
            layers = [t for pair in pairs for t in pair]
            return on(device, 3)(x, case.H, case.W, *layers, *case.options)

        return with_gradients(op, given, dy)

    for actual, expected in zip(gradients(None, None, None), gradients(*zeros), strict=True):
        torch.testing.assert_close(actual, expected)


def test_channels_that_do_not_fit_are_refused(device):
    inputs = random_inputs(Case(1, 2, 2, 8, 12))
    with pytest.raises(ValueError, match=r"hidden must be a multiple of 8 .* got 12"):
        of_tensors(on(device, 2), Case(1, 2, 2, 8, 12))(*inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_bytes_moved_and_bank_conflicts(device, dtype):
    """Of each row its neighbours to both sides are loaded with it, from L1, and two rows more for
    each block's; nothing else twice."""
    B, H, W, D = 1, 32, 32, 64
    device.watch_banks, device.multiprocessors = True, 1
    case = Case(B, H, W, 8, D)
    inputs, dy = random_inputs(case, dtype), torch.randn(B, H * W, 8).to(dtype)
    op = of_tensors(on(device, H), case)
    size = inputs[0].element_size()
    # 4 columns of blocks, of which 6 are wanted: two pieces of 16 rows
    blocks, pieces, threads = 8, 2, 128
    hidden = H * W * D * size
    # rows around the pieces, within the map, and columns to the sides
    around = (H + 2 * (pieces - 1)) * W * D * size
    sides = 2 * (around - around // W) - hidden + around
    taps = blocks * threads * 4 * (9 + 1) * size
    op(*inputs)
    check_bytes(device, Bytes(hidden, hidden, again=sides + taps))
    with_gradients(op, inputs, dy)
    sums = blocks * 32 * 4
    check_bytes(
        device,
        Bytes(2 * hidden + 10 * sums, 2 * hidden + 10 * sums, again=sides + taps),
        Bytes(hidden + sums, hidden + sums, again=sides + blocks * threads * 4 * 9 * size),
    )
    check_bank_conflicts(device)
