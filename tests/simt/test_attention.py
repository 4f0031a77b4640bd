"""The CUDA attention kernels, run on the CPU, against the definition in fp64."""

import math

import pytest
import torch

from pvt_kernels.backends.reference import attention as reference
from pvt_kernels.backends.tensors import dtype_name

from ..error_budget import check_error_budget, samples_for_a_ratio, with_gradients
from ..ops.cases.attention import random_inputs
from .counters import Bytes, check_bank_conflicts, check_bytes
from .device import CODES, Code

CUDA = "pvt_kernels.backends.cuda.attention"

DTYPES = (torch.float16, torch.float32)

# (B, N, M, heads, d): whole tiles of queries and keys, one row more, one row less, a single query
SHAPES = (
    (2, 96, 40, 2, 64),
    (1, 190, 95, 3, 32),
    (1, 64, 128, 1, 64),
    (1, 129, 65, 1, 128),
    (9, 1, 2, 7, 8),
    (1, 7, 33, 3, 40),
    (1, 31, 17, 1, 96),
)


def on(device, scale):
    """attention(q, k, v) on the device, differentiable."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            o, lse = device.run(f"{CUDA}.forward", q, k, v, scale)
            ctx.save_for_backward(q, k, v, o, lse)
            return o

        @staticmethod
        def backward(ctx, do):
            return device.run(f"{CUDA}.backward", do, *ctx.saved_tensors, scale)

    return Attention.apply


def check_against_oracle(device, *shape, dtype, scale=None, spread=1.0):
    B, N, _, heads, d = shape
    factor = d**-0.5 if scale is None else scale

    def definition(q, k, v):
        return reference.attention(q, k, v, factor)

    samples = []
    for _ in range(samples_for_a_ratio(rows=B * N * heads)):
        inputs = random_inputs(*shape, dtype=dtype, spread=spread)
        samples.append((inputs, torch.randn(B, N, heads, d)))
    check_error_budget(on(device, factor), definition, samples, names=("o", "dq", "dk", "dv"))


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_budget(device, code, shape):
    device.choose(code)
    device.seed = sum(shape)
    check_against_oracle(device, *shape, dtype=code.dtype)


@pytest.mark.parametrize("scale", [0.5, -0.5])
@pytest.mark.parametrize("code", [Code(70, torch.float16), *(Code(80, t) for t in DTYPES)], ids=str)
def test_error_budget_where_few_keys_dominate(device, code, scale):
    device.choose(code)
    check_against_oracle(device, 1, 64, 48, 2, 32, dtype=code.dtype, scale=scale, spread=8.0)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_scale_of_0_gives_the_mean_of_the_values(device, code):
    device.choose(code)
    q, k, v = random_inputs(1, 9, 70, 2, 16, dtype=code.dtype)
    o, lse = device.run(f"{CUDA}.forward", q, k, v, 0.0)
    torch.testing.assert_close(o, v.float().mean(1, keepdim=True).to(v.dtype).expand(o.shape))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(70)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("d", [96, 128])
def test_wide_heads_in_float32_fit_into_64_KB(device, d):
    device.arch = 75
    check_against_oracle(device, 1, 70, 41, 2, d, dtype=torch.float32)


@pytest.mark.parametrize("multiprocessors", [1, 8, 100])
def test_any_number_of_splits(device, multiprocessors):
    device.multiprocessors = multiprocessors
    check_against_oracle(device, 1, 260, 40, 1, 32, dtype=torch.float16)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_the_order_of_the_threads_does_not_matter(device, code):
    """A missing barrier would show: whether a value is there would depend on the order."""
    device.choose(code)
    inputs, do = random_inputs(1, 70, 75, 2, 32, dtype=code.dtype), torch.randn(1, 70, 2, 32)
    results = []
    for device.seed in range(4):
        results.append(with_gradients(on(device, 0.2), inputs, do))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_lse_is_the_natural_logarithm(device):
    q, k, v = random_inputs(2, 70, 40, 2, 16)
    _, lse = device.run(f"{CUDA}.forward", q, k, v, -0.3)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * -0.3
    torch.testing.assert_close(lse, scores.exp().sum(-1).log().float())


def test_large_scores_are_normalized_in_the_backward_as_in_the_forward(device):
    """All that a row loses is one rounding of its log-sum-exp, which scales its weights.

    Products of small integers, so that the scores are the same in any order of summation.
    """
    q = (8 * torch.randn(32, 1, 1, 32)).round()
    k = (4 * torch.randn(32, 48, 1, 32)).round() / 4
    o, lse = device.run(f"{CUDA}.forward", q, k, k, 0.5)
    assert lse.median() > 32
    exact = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()).mul(0.5).logsumexp(-1)
    half_a_unit = (torch.nextafter(lse, lse + 1) - lse) / 2
    assert ((lse - exact).abs() < 1.5 * half_a_unit).all()
    # with a gradient of ones dv has the weights
    *_, dv = device.run(f"{CUDA}.backward", torch.ones_like(q), q, k, k, o, lse, 0.5)
    lost = dv[..., 0].double().sum(1).flatten() - 1
    assert (lost.abs() < half_a_unit.flatten() + 4 * torch.finfo(torch.float32).eps).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_inputs_of_any_strides_and_addresses(device, dtype):
    q, k, v = random_inputs(2, 12, 6, 2, 8, dtype=dtype)
    strided = (
        q.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        # rows that begin at odd addresses
        torch.cat((k, k[..., :1]), dim=-1)[..., :8],
        torch.cat((torch.zeros(1, dtype=dtype), v.flatten()))[1:].view(v.shape),
    )
    do = torch.randn(2, 1, 1, 1).expand(2, 12, 2, 8)
    expected = with_gradients(on(device, 0.3), (q, k, v), do.contiguous())
    actual = with_gradients(on(device, 0.3), strided, do)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_saved_tensors_at_any_address(device):
    q, k, v = random_inputs(1, 12, 6, 2, 8)
    o, lse = device.run(f"{CUDA}.forward", q, k, v, 0.3)
    odd = torch.cat((torch.zeros(1), lse.flatten()))[1:].view(lse.shape)
    arguments = torch.ones_like(o), q, k, v, o
    expected = device.run(f"{CUDA}.backward", *arguments, lse, 0.3)
    actual = device.run(f"{CUDA}.backward", *arguments, odd, 0.3)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_scores_of_ten_thousand_stay_finite(device):
    q, k, v = random_inputs(1, 16, 9, 2, 16)
    outputs = with_gradients(on(device, 1e4), (q, k, v), torch.randn(1, 16, 2, 16))
    assert all(t.isfinite().all() for t in outputs)
    best = torch.einsum("bnhd,bmhd->bhnm", q, k).argmax(-1)
    picked = v.transpose(1, 2).gather(2, best.unsqueeze(-1).expand(-1, -1, -1, 16))
    torch.testing.assert_close(outputs[0], picked.transpose(1, 2))


def test_keys_that_are_not_there_count_for_nothing_where_all_scores_are_low(device):
    # an absent key's score would be 0, and its exponential relative to the others infinite
    q, k, v = (t.abs() + 1 for t in random_inputs(1, 20, 5, 1, 8))
    check = with_gradients(on(device, -1e3), (q, k, v), torch.randn(1, 20, 1, 8))
    assert all(t.isfinite().all() for t in check)


def test_nan_in_a_query_stays_in_its_row(device):
    q, k, v = random_inputs(1, 60, 70, 1, 16)
    expected, _ = device.run(f"{CUDA}.forward", q, k, v, 0.25)
    q[0, 50, 0, 3] = float("nan")
    actual, _ = device.run(f"{CUDA}.forward", q, k, v, 0.25)
    assert actual[0, 50].isnan().all()
    actual[0, 50] = expected[0, 50]
    assert torch.equal(actual, expected)


def test_an_empty_batch_gives_empty_results(device):
    q, k, v = random_inputs(0, 6, 4, 2, 8)
    shapes = [t.shape for t in with_gradients(on(device, 1.0), (q, k, v), torch.empty(0, 6, 2, 8))]
    assert shapes == [(0, 6, 2, 8), (0, 6, 2, 8), (0, 4, 2, 8), (0, 4, 2, 8)]


@pytest.mark.parametrize("head_dim", [12, 136])
def test_a_head_dim_that_does_not_fit_is_refused(device, head_dim):
    accepted = rf"head_dim must be a multiple of 8 up to 128, got {head_dim}"
    with pytest.raises(ValueError, match=accepted):
        device.run(f"{CUDA}.forward", *random_inputs(1, 4, 4, 1, head_dim), 1.0)


def test_bfloat16_is_refused_before_8_0(device):
    device.arch = 75
    inputs = random_inputs(1, 4, 4, 1, 8, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"needs .* 8\.0 .* 7\.5: use float16 or float32"):
        device.run(f"{CUDA}.forward", *inputs, 1.0)


def test_an_address_that_is_no_multiple_of_16_is_refused(device):
    for arguments in ((0, 8), (8, 0)):
        with pytest.raises(ValueError, match=r"(q|o) must have an address .*multiples? of 16"):
            device.run("tests.simt.calls.attention_at", *arguments)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_strides_that_are_no_multiples_of_16_bytes_are_refused(device, name):
    strides = {"q": (64, 8, 8), "k": (64, 8, 8), "v": (64, 8, 8)} | {name: (64, 10, 8)}
    message = f"{name} must have strides that are multiples of 16 bytes, got 10 elements for tokens"
    sizes = (2, 8, 8, 1, 8, "float32", 1.0, 0)
    with pytest.raises(ValueError, match=message):
        device.run("simt_cuda.plan_attention_forward", sizes, *strides.values(), True)


def test_a_launch_without_all_addresses_is_refused(device):
    with pytest.raises(ValueError, match="attention_forward: a launch takes 6 addresses, got 5"):
        device.run("tests.simt.calls.attention_without_workspace")


def test_a_kernel_that_the_device_has_no_room_for_is_named(device):
    device.shared_memory = 8 * 1024
    message = r"attention_forward<sm80, float32, 32> needs \d+ bytes .* and the device has 8192"
    with pytest.raises(RuntimeError, match=message):
        device.run(f"{CUDA}.forward", *random_inputs(1, 4, 4, 1, 8), 1.0)


def test_every_launch_is_checked(device):
    q, k, v = random_inputs(1, 4, 4, 1, 8)
    o, lse = device.run(f"{CUDA}.forward", q, k, v, 1.0)
    for (direction, *arguments), kernels in (
        (("forward", q, k, v), ["attention_forward<sm80, float32, 32>"]),
        (
            ("backward", o, q, k, v, o, lse),
            [
                "attention_delta<sm80, float32, 32>",
                "attention_dq_dk_dv<sm80, float32, 32>",
                "fold<sm80, float32>",
            ],
        ),
    ):
        for device.failing_launch, kernel in enumerate(kernels):
            message = (
                rf"^attention_{direction}: {kernel}, \d+ blocks of 128 threads with \d+ bytes of "
                r"shared memory: cudaLaunchKernel failed: too many resources requested for launch "
                r"\(cudaErrorLaunchOutOfResources\)$"
            )
            with pytest.raises(RuntimeError, match=message):
                device.run(f"{CUDA}.{direction}", *arguments, 1.0)
        device.failing_launch = len(kernels)
        device.run(f"{CUDA}.{direction}", *arguments, 1.0)
        assert len(device.counters["loaded"]) == len(kernels)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_bytes_moved(device, code):
    """Every byte once, but for those of the keys (queries), which each tile of the others reads."""
    B, N, M, heads, d = 2, 300, 90, 2, 64
    device.choose(code)
    device.multiprocessors = 16
    q, k, v = random_inputs(B, N, M, heads, d, dtype=code.dtype)
    size = q.element_size()
    queries, keys = B * N * heads * d * size, B * M * heads * d * size
    rows = B * heads * N * 4
    # that a block keeps: twice as many where a warp has two bands of 16
    block_rows = 128 if size == 4 or code == Code(70, torch.float16) else 64
    query_tiles = math.ceil(N / block_rows)

    o, lse = device.run(f"{CUDA}.forward", q, k, v, 0.1)
    again = (query_tiles - 1) * 2 * keys
    check_bytes(device, Bytes(queries + 2 * keys, queries + rows, again=again))

    splits = device.run("tests.simt.calls.dk_dv_splits", B, N, M, heads, d, dtype_name(q))
    assert splits > 1
    device.run(f"{CUDA}.backward", torch.randn_like(q), q, k, v, o, lse, 0.1)
    partials = splits * 2 * B * M * heads * d * 4
    if size == 4:
        # fp32: delta; dq, dk and dv, with q twice a step, and k and v too; the fold
        steps, key_tiles = math.ceil(N / 64), math.ceil(M / 64)
        numbers = 4 * math.ceil((1 + key_tiles * splits * B * heads * 4) / 4) * 4
        q_and_do = (3 * key_tiles - 2) * queries + (key_tiles - 1) * 2 * rows
        k_and_v = (splits + 2 * steps - 2) * keys
        dq_again = (key_tiles - 1) * queries
        check_bytes(
            device,
            Bytes(2 * queries, rows + numbers),
            Bytes(
                2 * (keys + queries + rows),
                key_tiles * queries + partials,
                again=q_and_do + k_and_v + dq_again,
            ),
            Bytes(partials, 2 * keys),
        )
        return
    key_tiles = math.ceil(M / block_rows)
    keys_again = (splits - 1) * 2 * keys
    queries_again = (key_tiles - 1) * 2 * (queries + rows)
    check_bytes(
        device,
        Bytes(3 * queries + 2 * keys + rows, queries + rows, again=again),
        Bytes(2 * (keys + queries + rows), partials, again=keys_again + queries_again),
        Bytes(partials, 2 * keys),
    )


@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("code", CODES, ids=str)
def test_bank_conflicts(device, code, d):
    device.choose(code)
    device.watch_banks = True
    q, k, v = random_inputs(1, 100, 70, 1, d, dtype=code.dtype)
    o, lse = device.run(f"{CUDA}.forward", q, k, v, 0.1)
    check_bank_conflicts(device)
    device.run(f"{CUDA}.backward", torch.randn_like(q), q, k, v, o, lse, 0.1)
    check_bank_conflicts(device)
