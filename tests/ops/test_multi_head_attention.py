"""The multi-head attention op on every backend that runs here, against the definition in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from pvt_kernels import multi_head_attention, use_backend
from pvt_kernels.backends.reference import multi_head_attention as reference

from ..error_budget import with_gradients
from .cases import BACKEND_PARAMS, FAST_BACKENDS, LOW_DTYPES, budget_cases
from .cases.multi_head_attention import check_against_oracle, random_inputs

# (B, N, M, heads, d)
SHAPES = (
    (2, 96, 40, 2, 64),
    (1, 190, 95, 5, 32),
    (3, 1, 2, 1, 8),
    (1, 7, 33, 3, 40),
    (1, 300, 49, 1, 64),
)


@pytest.mark.parametrize(("shape", "dtype", "backend"), budget_cases(SHAPES))
def test_error_budget(shape, dtype, backend):
    check_against_oracle(backend, *shape, dtype=dtype)


ANY_SHAPE = st.tuples(
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(2, 70),
    st.integers(1, 4),
    st.integers(1, 8).map(lambda eighths: 8 * eighths),
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


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_without_biases(backend, heads):
    x, y, *layers = random_inputs(2, 20, 9, heads, 32 // heads)
    weights = layers[::2]
    zeros = [torch.zeros(len(weight)) for weight in weights]
    do = torch.randn(2, 20, 32)

    def run(x, y, q, kv, out, biases):
        with use_backend(backend):
            q_bias, kv_bias, out_bias = biases
            return multi_head_attention(x, y, q, q_bias, kv, kv_bias, out, out_bias, heads)

    actual = with_gradients(lambda *t: run(*t, (None, None, None)), (x, y, *weights), do)
    expected = with_gradients(lambda *t: run(*t, zeros), (x, y, *weights), do)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_strided_inputs_give_what_contiguous_ones_do(backend):
    x, y, *layers = random_inputs(2, 12, 6, 2, 8)
    strided = [
        x.transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat((y, y), dim=-1)[..., 16:],
        *(t.T.contiguous().T if t.dim() == 2 else torch.stack((t, t), -1)[:, 0] for t in layers),
    ]
    assert not any(t.is_contiguous() for t in strided)
    do = torch.randn(2, 16, 12).transpose(1, 2)
    with use_backend(backend):
        expected = with_gradients(lambda *t: multi_head_attention(*t, 2), (x, y, *layers), do)
        actual = with_gradients(lambda *t: multi_head_attention(*t, 2), strided, do)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_an_expanded_gradient_gives_that_of_ones(backend):
    inputs = [t.requires_grad_() for t in random_inputs(1, 6, 4, 2, 8)]
    with use_backend(backend):
        result = multi_head_attention(*inputs, 2)
    expanded = torch.autograd.grad(result.sum(), inputs, retain_graph=True)
    ones = torch.autograd.grad(result, inputs, torch.ones_like(result))
    for actual, expected in zip(expanded, ones, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_tokens_that_attend_to_themselves(backend):
    x, _, *layers = random_inputs(2, 30, 1, 2, 16)
    do = torch.randn(2, 30, 32)
    with use_backend(backend):
        actual = with_gradients(lambda x: multi_head_attention(x, x, *layers, 2), [x], do)
    expected = with_gradients(
        lambda x: reference.multi_head_attention(x, x, *layers, 2, 0.25), [x], do
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_the_result_is_the_same_without_gradients(backend):
    inputs = random_inputs(1, 70, 20, 2, 16)
    with use_backend(backend):
        expected = multi_head_attention(*(t.clone().requires_grad_() for t in inputs), 2)
        with torch.no_grad():
            actual = multi_head_attention(*inputs, 2)
    assert torch.equal(actual, expected)
    assert not actual.requires_grad


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_an_empty_batch_gives_empty_results(backend):
    inputs = random_inputs(0, 6, 4, 2, 8)
    with use_backend(backend):
        results = with_gradients(
            lambda *t: multi_head_attention(*t, 2), inputs, torch.empty(0, 6, 16)
        )
    assert [r.shape for r in results[1:]] == [t.shape for t in inputs]
    for gradient in results[3:]:
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_autocast_casts_the_inputs(backend):
    inputs = random_inputs(1, 6, 4, 2, 8)
    with use_backend(backend):
        expected = multi_head_attention(*(t.bfloat16() for t in inputs), 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = multi_head_attention(*inputs, 2)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def test_dropout_drops_weights():
    x, y, *layers = random_inputs(1, 64, 48, 2, 16)
    inputs = (x, y, *layers)
    assert not torch.equal(
        multi_head_attention(*inputs, 2, dropout_p=0.5), multi_head_attention(*inputs, 2)
    )


def test_only_the_backward_has_o_saved():
    inputs = random_inputs(1, 6, 4, 2, 8)
    forward = torch.ops.pvt_kernels.multi_head_attention_forward
    for save, size in ((True, 6 * 16), (False, 0)):
        result, o, kv, lse = forward(*inputs, 2, 0.3, save, "cpu")
        assert o.numel() == size
        assert (result.shape, kv.shape, lse.shape) == ((1, 6, 16), (1, 4, 32), (1, 2, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    inputs = [t.requires_grad_() for t in random_inputs(2, 6, 4, 2, 8, dtype=dtype)]
    forward = torch.ops.pvt_kernels.multi_head_attention_forward
    opcheck(forward, (*inputs, 2, 0.3, True, "cpu"))
    with torch.no_grad():
        result, o, kv, lse = forward(*inputs, 2, 0.3, True, "cpu")
        x, y, q_weight, q_bias, kv_weight, _, out_weight, _ = (t.detach() for t in inputs)
        tensors = (x, y, q_weight, q_bias, kv_weight, out_weight, o, kv, lse)
        arguments = (torch.randn_like(result), *tensors, 0.3, "cpu")
        opcheck(torch.ops.pvt_kernels.multi_head_attention_backward, arguments)


def test_flops_are_those_of_the_products():
    inputs = random_inputs(2, 10, 6, 3, 8)
    with use_backend("cpu"), FlopCounterMode(display=False) as forward:
        result = multi_head_attention(*(t.requires_grad_() for t in inputs), 3)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    C, attention = 24, 2 * 2 * 3 * 10 * 6 * 8
    q, kv = 2 * 2 * 10 * C * C, 2 * 2 * 6 * C * 2 * C
    assert forward.get_total_flops() == 2 * attention + 2 * q + kv
    assert backward.get_total_flops() == 5 * attention + q + 2 * (2 * q + kv)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(6, 16)}, ValueError, r"x must have the shape .* got \(6, 16\)"),
        ({"x": torch.zeros(2, 0, 16)}, ValueError, "x's N must be at least 1, got 0"),
        ({"y": torch.zeros(2, 0, 16)}, ValueError, "y's M must be at least 1, got 0"),
        ({"y": torch.zeros(3, 4, 16)}, ValueError, r"y must .* \(2, 4, 16\), got \(3, 4, 16\)"),
        ({"y": torch.zeros(2, 4, 16).double()}, TypeError, "y must .* got torch.float64"),
        ({"q_weight": torch.zeros(16, 8)}, ValueError, r"q_weight must .* got \(16, 8\)"),
        ({"q_weight": None}, TypeError, "q_weight must be a tensor .* got NoneType"),
        ({"kv_weight": torch.zeros(16, 16)}, ValueError, r"kv_weight must .* got \(16, 16\)"),
        ({"kv_bias": torch.zeros(16)}, ValueError, r"kv_bias must .* = \(32,\), got \(16,\)"),
        ({"out_bias": torch.zeros(16).half()}, TypeError, "out_bias must .* got torch.float16"),
        ({"heads": 3}, ValueError, "heads must divide C = 16, got 3"),
        ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ({"scale": float("inf")}, ValueError, "scale must be finite, got inf"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_input(changes, error, message):
    names = ("x", "y", "q_weight", "q_bias", "kv_weight", "kv_bias", "out_weight", "out_bias")
    arguments = dict(zip(names, random_inputs(2, 6, 4, 2, 8), strict=True)) | {"heads": 2}
    with pytest.raises(error, match=f"multi_head_attention: {message}"):
        multi_head_attention(**arguments | changes)
