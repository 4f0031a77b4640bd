"""What only the C++ kernels for CPUs have: code paths, threads, workspaces."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pvt_kernels import (
    SRAttention,
    attention,
    feed_forward,
    multi_head_attention,
    use_backend,
)
from pvt_kernels._C import cpu
from pvt_kernels.parts import reduce

from ..error_budget import with_gradients
from ..ops.cases import LOW_DTYPES
from ..ops.cases import attention as attention_cases
from ..ops.cases import feed_forward as ffn_cases
from ..ops.cases import multi_head_attention as mha_cases
from ..ops.cases import spatial_reduction as reduction_cases

CODE_PATHS = ("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16")


@pytest.fixture(params=CODE_PATHS)
def code_path(request, monkeypatch):
    if request.param not in cpu.capabilities():
        pytest.skip(f"this CPU lacks {request.param}: it has {', '.join(cpu.capabilities())}")
    monkeypatch.setenv("PVT_KERNELS_CPU_CAPABILITY", request.param)
    assert cpu.capability() == request.param
    return request.param


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 100, 70, 2, 64), (1, 49, 64, 1, 40), (1, 7, 951, 1, 256)], ids=str
)
def test_attention_on_every_code_path(code_path, shape, dtype):
    attention_cases.check_against_oracle("cpu", *shape, dtype=dtype)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
# of few tokens, of many, of one head, and of columns left over
@pytest.mark.parametrize(
    "shape",
    [(1, 49, 64, 3, 40), (2, 100, 70, 2, 64), (1, 130, 20, 1, 40), (1, 600, 50, 2, 32)],
    ids=str,
)
def test_multi_head_attention_on_every_code_path(code_path, shape, dtype):
    mha_cases.check_against_oracle("cpu", *shape, dtype=dtype)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 17, 25, 64, 8), (1, 9, 12, 24, 3), (1, 6, 6, 328, 2)], ids=str
)
def test_spatial_reduction_on_every_code_path(code_path, shape, dtype):
    reduction_cases.check_against_oracle("cpu", *shape, dtype)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        ffn_cases.Case(1, 45, 80, 16, 80),
        ffn_cases.Case(2, 11, 13, 27, 130, relu_before_conv=True),
        ffn_cases.Case(1, 9, 25, 40, 96, conv=False),
        ffn_cases.Case(1, 6, 7, 24, 64, activation="relu"),
    ],
    ids=str,
)
def test_feed_forward_on_every_code_path(code_path, case, dtype):
    ffn_cases.check_against_oracle("cpu", case, dtype)


def test_gelu_has_the_accuracy_of_fp32(code_path):
    """Of one hidden channel, whose product with 1 is exact."""
    x = torch.cat((torch.linspace(-6, 6, 400_001), torch.logspace(-30, 1, 1000)))
    one = torch.ones(1, 1)
    with use_backend("cpu"):
        actual = feed_forward(x[None, :, None], 1, 1, one, None, None, None, one, None).flatten()
    exact = x.double() * torch.special.ndtr(x.double())
    ulp = 2.0 ** (exact.abs().log2().floor() - 23)
    errors = (actual.double() - exact).abs() / ulp
    assert errors[x > -1].max() <= 3
    # further down, where 1 + erf would cancel, the exponent x^2 / 2 multiplies three roundings, and
    # an error of half an ulp may be one of a whole one after the last product
    assert (errors <= 3 + 1.5 * x.double() ** 2).all()
    pytorch = (torch.nn.functional.gelu(x).double() - exact).abs() / ulp
    assert errors.max() < pytorch[exact != 0].max()


def test_gelu_of_what_is_no_number():
    x = torch.tensor([float("inf"), -1e30, 1e30, -50.0, 0.0, float("nan")])
    one = torch.ones(1, 1)
    with use_backend("cpu"):
        actual = feed_forward(x[None, :, None], 1, 1, one, None, None, None, one, None).flatten()
    assert torch.equal(actual[:5], torch.tensor([float("inf"), 0.0, 1e30, 0.0, 0.0]))
    assert actual[5].isnan()


def test_the_fastest_code_path_is_chosen(monkeypatch):
    monkeypatch.delenv("PVT_KERNELS_CPU_CAPABILITY", raising=False)
    assert cpu.capability() == cpu.capabilities()[-1]


def test_the_peak_is_of_the_instructions_that_products_are_made_of(monkeypatch):
    monkeypatch.setenv("PVT_KERNELS_CPU_CAPABILITY", "portable")
    # of 4 lanes, at 1 GHz
    portable = cpu.peak_rate("float32", 1)
    assert portable > 4e9
    for faster in cpu.capabilities()[1:]:
        monkeypatch.setenv("PVT_KERNELS_CPU_CAPABILITY", faster)
        # fused, and twice as wide at least: 4 times as many, on a machine that others use too
        assert cpu.peak_rate("float32", 1) > 1.3 * portable, faster
    with pytest.raises(ValueError, match="float64"):
        cpu.peak_rate("float64", 1)


def test_an_unknown_code_path_says_what_is_accepted(monkeypatch):
    monkeypatch.setenv("PVT_KERNELS_CPU_CAPABILITY", "mmx")
    accepted = "PVT_KERNELS_CPU_CAPABILITY must be one of portable.* on this CPU, got mmx"
    with use_backend("cpu"), pytest.raises(ValueError, match=accepted):
        attention(*attention_cases.random_inputs(1, 6, 4, 2, 8))


@pytest.mark.parametrize("sizes", [(1, 500, 70, 1, 32), (3, 49, 49, 5, 32)], ids=str)
def test_attention_with_any_number_of_threads(threads, sizes):
    # heads shared by threads, threads with several heads, threads without work
    attention_cases.check_against_oracle("cpu", *sizes, dtype=torch.float32)


def test_attention_is_deterministic(threads):
    inputs, do = attention_cases.random_inputs(2, 300, 90, 2, 64), torch.randn(2, 300, 2, 64)
    with use_backend("cpu"):
        first, second = (with_gradients(attention, inputs, do) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("sizes", [(1, 500, 70, 1, 32), (3, 49, 49, 5, 16)], ids=str)
def test_multi_head_attention_with_any_number_of_threads(threads, sizes):
    mha_cases.check_against_oracle("cpu", *sizes, dtype=torch.float32)


def test_multi_head_attention_is_deterministic(threads):
    inputs = mha_cases.random_inputs(2, 300, 90, 2, 32)
    dresult = torch.randn(2, 300, 64)

    def op(*tensors):
        return multi_head_attention(*tensors, 2)

    with use_backend("cpu"):
        first, second = (with_gradients(op, inputs, dresult) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_spatial_reduction_does_not_depend_on_the_number_of_threads():
    layer = SRAttention(40, 5, sr_ratio=3)
    x = torch.randn(2, 11 * 16, 40)
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        with use_backend("cpu"):
            y = reduce(x, 11, 16, layer.sr, layer.norm)
        grads = torch.autograd.grad(y.sin().sum(), [*layer.sr.parameters(), layer.norm.weight])
        results.append([y, *grads])
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# slabs for every thread, threads that share a slab, one token for all
@pytest.mark.parametrize("map_size", [(40, 60), (7, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("conv", [True, False], ids=["conv", "plain"])
def test_feed_forward_with_any_number_of_threads(threads, map_size, conv):
    case = ffn_cases.Case(1, *map_size, 24, 200, conv=conv)
    ffn_cases.check_against_oracle("cpu", case, torch.float32)


@pytest.mark.parametrize("map_size", [(40, 60), (7, 7)], ids=str)
def test_feed_forward_is_deterministic(threads, map_size):
    case = ffn_cases.Case(2, *map_size, 24, 200)
    inputs = ffn_cases.random_inputs(case)
    dresult = torch.randn(inputs[0].shape)
    with use_backend("cpu"):
        op = ffn_cases.of_tensors(feed_forward, case)
        first, second = (with_gradients(op, inputs, dresult) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_feed_forward_keeps_nan_within_the_convolutions_reach():
    case = ffn_cases.Case(1, 12, 30, 8, 64)
    x, *layers = ffn_cases.random_inputs(case)
    op = ffn_cases.of_tensors(feed_forward, case)
    with use_backend("cpu"):
        expected = op(x, *layers)
        x[0, 4 * 30 + 29, 3] = float("nan")
        actual = op(x, *layers)
    reached = torch.zeros(12, 30, dtype=torch.bool)
    reached[3:6, 28:30] = True
    assert torch.equal(actual.isnan().any(-1).view(12, 30), reached)
    assert torch.equal(actual[0, ~reached.flatten()], expected[0, ~reached.flatten()])


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [1, 2])
def test_the_default_dtype_does_not_matter(heads, default):
    """What the kernels write to is float32 all the same, as are the tensors here."""
    layer = SRAttention(16 * heads, heads, qkv_bias=True, sr_ratio=2)
    case = ffn_cases.Case(2, 6, 8, 16 * heads, 64)
    x, *parts = (t.requires_grad_() for t in ffn_cases.random_inputs(case))
    network = ffn_cases.of_tensors(feed_forward, case)
    parameters = (x, *parts, *layer.parameters())

    def gradients():
        with use_backend("cpu"):
            return torch.autograd.grad(network(layer(x, 6, 8), *parts).square().sum(), parameters)

    expected = gradients()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        actual = gradients()
    finally:
        torch.set_default_dtype(before)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_several_python_threads_at_once():
    layer = SRAttention(64, 2, sr_ratio=2)
    xs = [torch.randn(2, 14 * 18, 64) for _ in range(16)]
    with use_backend("cpu"), torch.no_grad():
        expected = [layer(x, 14, 18) for x in xs]
        with ThreadPoolExecutor(4) as pool:
            actual = list(pool.map(lambda x: layer(x, 14, 18), xs))
    # grad mode is a thread's own, so only the values are compared
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_nan_in_a_query_stays_in_its_row():
    q, k, v = attention_cases.random_inputs(1, 60, 70, 1, 16)
    with use_backend("cpu"):
        expected = attention(q, k, v)
        q[0, 50, 0, 3] = float("nan")
        actual = attention(q, k, v)
    assert actual[0, 50].isnan().all()
    actual[0, 50] = expected[0, 50]
    assert torch.equal(actual, expected)


def test_inputs_at_odd_addresses():
    q, k, v = attention_cases.random_inputs(1, 60, 70, 2, 24, dtype=torch.bfloat16)

    def shifted(t):
        return torch.cat((torch.zeros(1, dtype=t.dtype), t.flatten()))[1:].view(t.shape)

    with use_backend("cpu"):
        assert torch.equal(attention(*map(shifted, (q, k, v))), attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_survives_the_round_trip(dtype):
    """A single key of weight 1 returns its value: to fp32 and back to 16 bits."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    v = bits.view(dtype)
    kept = v.isfinite()
    if dtype == torch.bfloat16 and cpu.capability() in ("avx512_bf16", "amx_bf16"):
        # VDPBF16PS and TDPBF16PS take subnormal numbers for 0
        kept &= v.abs() >= torch.finfo(dtype).tiny
    v = torch.where(kept, v, torch.zeros_like(v)).view(1024, 1, 2, 32)
    q = torch.zeros(1024, 1, 2, 32, dtype=dtype)
    with use_backend("cpu"):
        assert torch.equal(attention(q, torch.zeros_like(v), v), v)


def test_rounding_to_16_bits_is_pytorchs():
    """Two keys of equal weight return means between representable numbers: ties and all."""
    for dtype in (torch.float16, torch.bfloat16):
        low = torch.rand(512, 1, 1, 32).mul(2.0).to(dtype)
        high = torch.nextafter(low, torch.full_like(low, 4.0))
        v = torch.cat((low, high), dim=1)
        zeros = torch.zeros_like(v)
        with use_backend("cpu"):
            actual = attention(zeros[:, :1], zeros, v)
        expected = ((low.float() + high.float()) / 2).to(dtype)
        assert torch.equal(actual, expected)
