"""The attention op on every backend that runs here, against the definition in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from pvt_kernels import attention, use_backend
from pvt_kernels.backends import AttentionInputs
from pvt_kernels.backends.reference import attention as reference

from ..error_budget import with_gradients
from .cases import (
    BACKEND_PARAMS,
    FAST_BACKENDS,
    LOW_DTYPES,
    budget_cases,
    skip_unless_supported,
)
from .cases.attention import check_against_oracle, random_inputs

# (B, N, M, heads, d)
SHAPES = (
    (2, 96, 40, 2, 64),
    (1, 190, 95, 5, 32),
    (3, 1, 2, 1, 8),
    (1, 7, 33, 3, 40),
    (1, 50, 50, 1, 128),
)


@pytest.mark.parametrize(("shape", "dtype", "backend"), budget_cases(SHAPES))
def test_error_budget(shape, dtype, backend):
    check_against_oracle(backend, *shape, dtype=dtype)


# of a negative factor the lowest score gets the highest weight
@pytest.mark.parametrize("backend", BACKEND_PARAMS)
@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("spread", [8.0, 32.0])
@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_error_budget_where_few_keys_dominate(backend, dtype, spread, scale):
    check_against_oracle(backend, 1, 64, 48, 2, 32, dtype=dtype, scale=scale, spread=spread)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_a_scale_of_zero_weighs_all_keys_the_same(backend, dtype):
    check_against_oracle(backend, 2, 40, 70, 2, 32, dtype=dtype, scale=0.0)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_large_scores_are_normalized_in_the_backward_as_in_the_forward(backend):
    """All that a row loses is one rounding of its log-sum-exp, which scales its weights.

    Products of small integers, so that the scores are the same in any order of summation.
    """
    skip_unless_supported(backend, AttentionInputs(torch.device("cpu"), torch.float32, 32, False))
    q = (8 * torch.randn(32, 1, 1, 32)).round()
    k = (4 * torch.randn(32, 48, 1, 32)).round() / 4
    ops = torch.ops.pvt_kernels
    o, lse = ops.attention_forward(q, k, k, 0.5, backend)
    assert lse.median() > 32
    # with a gradient of ones dv has the weights
    *_, dv = ops.attention_backward(torch.ones_like(q), q, k, k, o, lse, 0.5, backend)
    lost = dv[..., 0].double().sum(1).flatten() - 1
    half_a_unit = (torch.nextafter(lse, lse + 1) - lse).flatten() / 2
    assert (lost.abs() < half_a_unit + 4 * torch.finfo(torch.float32).eps).all()


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_a_single_key_takes_all(backend, dtype):
    # its weight is 1 whatever the score: no gradient for q and k, but for what rounding leaves
    # of dP - delta, a difference of equal sums of products of do and v
    skip_unless_supported(backend, AttentionInputs(torch.device("cpu"), dtype, 32, False))
    q, k, v = random_inputs(3, 5, 1, 2, 32, dtype=dtype)
    with use_backend(backend):
        o, dq, dk, dv = with_gradients(attention, (q, k, v), torch.randn(3, 5, 2, 32))
    assert torch.equal(o, v.expand_as(o))
    noise = 32 * torch.finfo(dtype).eps
    assert dq.abs().max() < noise
    assert dk.abs().max() < noise
    assert dv.abs().max() > 1


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_fp64(backend):
    skip_unless_supported(backend, AttentionInputs(torch.device("cpu"), torch.float64, 16, False))
    inputs = random_inputs(2, 30, 17, 3, 16, dtype=torch.float64)
    do = torch.randn(2, 30, 3, 16, dtype=torch.float64)
    with use_backend(backend):
        actual = with_gradients(attention, inputs, do)
    expected = with_gradients(lambda q, k, v: reference.attention(q, k, v, 0.25), inputs, do)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


ANY_SHAPE = st.tuples(
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(2, 70),
    st.integers(1, 4),
    st.integers(1, 20).map(lambda eighths: 8 * eighths),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from(FAST_BACKENDS), ANY_SHAPE, st.sampled_from(LOW_DTYPES))
def test_error_budget_of_any_shape(backend, shape, dtype):
    check_against_oracle(backend, *shape, dtype=dtype)


@pytest.mark.nightly
@settings(max_examples=15, deadline=None, derandomize=True)
@given(ANY_SHAPE, st.sampled_from(LOW_DTYPES))
def test_error_budget_of_any_shape_in_triton(shape, dtype):
    check_against_oracle("triton", *shape, dtype=dtype)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_gradcheck(backend):
    skip_unless_supported(backend, AttentionInputs(torch.device("cpu"), torch.float64, 4, False))
    inputs = [t.requires_grad_() for t in random_inputs(2, 5, 3, 2, 4, dtype=torch.float64)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, 0.7), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype):
    q, k, v = (t.requires_grad_() for t in random_inputs(2, 6, 4, 2, 8, dtype=dtype))
    opcheck(torch.ops.pvt_kernels.attention_forward, (q, k, v, 0.3, "reference"))
    with torch.no_grad():
        o, lse = torch.ops.pvt_kernels.attention_forward(q, k, v, 0.3, "reference")
        arguments = (torch.randn_like(o), q.detach(), k.detach(), v.detach(), o, lse)
        opcheck(torch.ops.pvt_kernels.attention_backward, (*arguments, 0.3, "reference"))


def test_lse_is_the_log_of_the_sum_of_exponentials():
    q, k, v = random_inputs(2, 6, 4, 2, 8)
    _, lse = torch.ops.pvt_kernels.attention_forward(q, k, v, 0.3, "reference")
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * 0.3
    torch.testing.assert_close(lse, scores.exp().sum(-1).log().float())


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_an_expanded_gradient_gives_that_of_ones(backend):
    q, k, v = (t.requires_grad_() for t in random_inputs(2, 6, 4, 2, 8))
    with use_backend(backend):
        o = attention(q, k, v)
    expanded = torch.autograd.grad(o.sum(), (q, k, v), retain_graph=True)
    for actual, expected in zip(
        expanded, torch.autograd.grad(o, (q, k, v), torch.ones_like(o)), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_strided_inputs_give_what_contiguous_ones_do(backend):
    q, k, v = random_inputs(2, 12, 6, 2, 8)
    strided = (
        q.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        k.transpose(1, 3).contiguous().transpose(1, 3),
        torch.cat((v, v), dim=-1)[..., 8:],
    )
    assert not any(t.is_contiguous() for t in strided)
    do = torch.randn(2, 8, 2, 12).permute(0, 3, 2, 1)
    with use_backend(backend):
        expected = with_gradients(attention, [t.contiguous() for t in (q, k, v)], do)
        actual = with_gradients(attention, strided, do)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_scores_of_ten_thousand_stay_finite(backend):
    q, k, v = random_inputs(1, 16, 9, 2, 16)
    outputs = with_gradients(
        lambda *qkv: attention(*qkv, scale=1e4), (q, k, v), torch.randn(1, 16, 2, 16)
    )
    with use_backend(backend):
        assert all(t.isfinite().all() for t in outputs)
    # one key takes it all
    best = torch.einsum("bnhd,bmhd->bhnm", q, k).argmax(-1)
    picked = v.transpose(1, 2).gather(2, best.unsqueeze(-1).expand(-1, -1, -1, 16))
    torch.testing.assert_close(outputs[0], picked.transpose(1, 2))


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_an_empty_batch_gives_empty_results(backend):
    q, k, v = random_inputs(0, 6, 4, 2, 8)
    with use_backend(backend):
        shapes = [t.shape for t in with_gradients(attention, (q, k, v), torch.empty(0, 6, 2, 8))]
    assert shapes == [(0, 6, 2, 8), (0, 6, 2, 8), (0, 4, 2, 8), (0, 4, 2, 8)]


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_autocast_casts_the_inputs(backend):
    q, k, v = random_inputs(1, 6, 4, 2, 8)
    lower = [t.bfloat16() for t in (q, k, v)]
    with use_backend(backend):
        expected = attention(*lower)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = attention(q, k.bfloat16(), v)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def test_a_second_derivative_raises_instead_of_being_wrong():
    q, k, v = (t.requires_grad_() for t in random_inputs(1, 6, 4, 2, 8))
    with use_backend("reference"):
        (dq,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention_backward"):
        dq.sum().backward()


def test_dropout_drops_weights():
    q, k, v = random_inputs(1, 64, 48, 2, 16)
    dropped = attention(q, k, torch.ones_like(v), dropout_p=0.5)
    # each of 48 nearly equal weights counts double or not at all
    assert dropped.std() > 0.05
    torch.testing.assert_close(dropped.mean(), torch.tensor(1.0), atol=0.05, rtol=0)


def test_flops_are_those_of_the_products():
    q, k, v = (t.to("meta").requires_grad_() for t in random_inputs(2, 10, 6, 3, 8))
    with use_backend("reference"), FlopCounterMode(display=False) as forward:
        o = attention(q, k, v)
    with FlopCounterMode(display=False) as backward:
        o.sum().backward()
    product = 2 * 2 * 3 * 10 * 6 * 8
    assert forward.get_total_flops() == 2 * product
    assert backward.get_total_flops() == 5 * product


Q, K = (2, 6, 2, 8), (2, 4, 2, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(6, 2, 8)}, ValueError, r"q must have the shape .* got \(6, 2, 8\)"),
        ({"q": [1.0]}, TypeError, r"q must be a tensor \(B, N, heads, d\), got list"),
        ({"q": torch.zeros(2, 0, 2, 8)}, ValueError, "q's N must be at least 1, got 0"),
        (
            {"q": torch.zeros(Q).long()},
            TypeError,
            r"q must be torch\.float16 or .* got torch\.int64",
        ),
        ({"k": torch.zeros(2, 0, 2, 8)}, ValueError, "k's M must be at least 1, got 0"),
        (
            {"k": torch.zeros(3, 4, 2, 8)},
            ValueError,
            r"k must have .* = \(2, 4, 2, 8\), got \(3, 4, 2, 8\)",
        ),
        (
            {"k": torch.zeros(K).double()},
            TypeError,
            r"k must .* torch\.float32, got torch\.float64",
        ),
        (
            {"k": torch.zeros(K, device="meta")},
            ValueError,
            "k must be on q's device, cpu, got meta",
        ),
        (
            {"v": torch.zeros(2, 5, 2, 8)},
            ValueError,
            r"v must have .* = \(2, 4, 2, 8\), got \(2, 5, 2, 8\)",
        ),
        ({"v": torch.zeros(2, 4, 2)}, ValueError, r"v must have .* heads, d\), got \(2, 4, 2\)"),
        ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1\.0"),
        ({"dropout_p": -0.1}, ValueError, r"dropout_p must be in \[0, 1\), got -0\.1"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {"q": torch.zeros(Q), "k": torch.zeros(K), "v": torch.zeros(K)} | changes
    with pytest.raises(error, match=f"attention: {message}"):
        attention(**arguments)


def test_the_backward_checks_the_incoming_gradient():
    q, k = torch.zeros(Q), torch.zeros(K)
    o, lse = torch.ops.pvt_kernels.attention_forward(q, k, k, 1.0, "reference")
    with pytest.raises(ValueError, match="do must have the shape"):
        torch.ops.pvt_kernels.attention_backward(k, q, k, k, o, lse, 1.0, "reference")
    with pytest.raises(TypeError, match="do must have q's dtype"):
        torch.ops.pvt_kernels.attention_backward(q.double(), q, k, k, o, lse, 1.0, "reference")
