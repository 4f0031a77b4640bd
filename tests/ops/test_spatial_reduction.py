"""The spatial reduction op on every backend that runs here, against the definition in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from pvt_kernels import spatial_reduction, use_backend
from pvt_kernels.backends import SpatialReductionInputs
from pvt_kernels.backends.reference import spatial_reduction as reference

from ..error_budget import with_gradients
from .cases import (
    BACKEND_PARAMS,
    FAST_BACKENDS,
    LOW_DTYPES,
    budget_cases,
    skip_unless_supported,
)
from .cases.spatial_reduction import EPS, at_size, check_against_oracle, random_inputs

# (B, H, W, C, R): divisible, with rows and columns left over, one patch, no reduction
SHAPES = ((2, 16, 24, 64, 8), (1, 13, 19, 32, 4), (2, 3, 3, 40, 2), (3, 7, 5, 16, 1))


@pytest.mark.parametrize(("shape", "dtype", "backend"), budget_cases(SHAPES))
def test_error_budget(shape, dtype, backend):
    check_against_oracle(backend, *shape, dtype)


# B, C in eighths, R, and by how much H and W are larger
ANY_SHAPE = st.tuples(
    st.integers(1, 3), st.integers(1, 8), st.integers(1, 8), st.integers(0, 12), st.integers(0, 12)
).map(lambda s: (s[0], s[2] + s[3], s[2] + s[4], 8 * s[1], s[2]))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from(FAST_BACKENDS), ANY_SHAPE, st.sampled_from(LOW_DTYPES))
def test_error_budget_of_any_shape(backend, shape, dtype):
    check_against_oracle(backend, *shape, dtype)


@pytest.mark.nightly
@settings(max_examples=15, deadline=None, derandomize=True)
@given(ANY_SHAPE, st.sampled_from(LOW_DTYPES))
def test_error_budget_of_any_shape_in_triton(shape, dtype):
    check_against_oracle("triton", *shape, dtype)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_fp64(backend):
    device = torch.device("cpu")
    skip_unless_supported(backend, SpatialReductionInputs(device, torch.float64, 16, 4))
    inputs, dy = random_inputs(2, 9, 14, 16, 4, torch.float64), torch.randn(2, 6, 16).double()
    with use_backend(backend):
        actual = with_gradients(at_size(spatial_reduction, 9, 14), inputs, dy)
    expected = with_gradients(at_size(reference.spatial_reduction, 9, 14), inputs, dy)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_gradcheck(backend):
    device = torch.device("cpu")
    skip_unless_supported(backend, SpatialReductionInputs(device, torch.float64, 4, 2))
    inputs = [t.requires_grad_() for t in random_inputs(2, 5, 7, 4, 2, torch.float64)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(at_size(spatial_reduction, 5, 7), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype):
    x, weight, bias, norm_weight, norm_bias = (
        t.requires_grad_() for t in random_inputs(2, 5, 7, 8, 2, dtype)
    )
    forward = torch.ops.pvt_kernels.spatial_reduction_forward
    arguments = (x, 5, 7, weight, bias, norm_weight, norm_bias, EPS, "reference")
    opcheck(forward, arguments)
    with torch.no_grad():
        y, normalized, rstd = forward(*arguments)
    saved = [t.detach() for t in (x, weight, norm_weight)]
    opcheck(
        torch.ops.pvt_kernels.spatial_reduction_backward,
        (y, saved[0], 5, 7, *saved[1:], normalized, rstd, "reference"),
    )


def test_what_is_saved_has_mean_0_and_variance_1():
    x, *parameters = random_inputs(2, 6, 9, 64, 3)
    y, normalized, rstd = torch.ops.pvt_kernels.spatial_reduction_forward(
        x, 6, 9, *parameters, EPS, "reference"
    )
    assert y.shape == normalized.shape == (2, 6, 64)
    assert rstd.shape == (2, 6)
    torch.testing.assert_close(normalized.mean(-1), torch.zeros(2, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalized.var(-1, correction=0), torch.ones(2, 6), **CLOSE)


CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_tokens_of_no_patch_do_not_count_and_get_no_gradient(backend):
    H, W, R = 7, 11, 3
    x, *parameters = random_inputs(1, H, W, 16, R)
    outside = torch.ones(H, W, dtype=torch.bool)
    outside[: H // R * R, : W // R * R] = False
    poisoned = x.clone()
    poisoned[:, outside.flatten()] = float("nan")
    with use_backend(backend):
        op = at_size(spatial_reduction, H, W)
        y, dx, *_ = with_gradients(op, (x, *parameters), torch.randn(1, 6, 16))
        assert torch.equal(op(poisoned, *parameters), y)
    assert (dx[:, outside.flatten()] == 0).all()
    assert (dx[:, ~outside.flatten()] != 0).all()


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_strided_inputs_give_what_contiguous_ones_do(backend):
    x, *parameters = random_inputs(2, 6, 8, 16, 2)
    born_channels_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    weight = parameters[0].contiguous(memory_format=torch.channels_last)
    assert not born_channels_first.is_contiguous()
    assert not weight.is_contiguous()
    dy = torch.randn(16, 12, 2).permute(2, 1, 0)
    op = at_size(spatial_reduction, 6, 8)
    with use_backend(backend):
        expected = with_gradients(op, (x, *parameters), dy.contiguous())
        actual = with_gradients(op, (born_channels_first, weight, *parameters[1:]), dy)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_an_expanded_gradient_gives_that_of_ones(backend):
    inputs = [t.requires_grad_() for t in random_inputs(2, 6, 8, 16, 2)]
    with use_backend(backend):
        y = spatial_reduction(inputs[0], 6, 8, *inputs[1:])
    expanded = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    torch.testing.assert_close(expanded, torch.autograd.grad(y, inputs, torch.ones_like(y)))


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_an_empty_batch_gives_empty_results_and_zero_weight_gradients(backend):
    inputs = random_inputs(0, 6, 8, 16, 2)
    with use_backend(backend):
        y, dx, *dparameters = with_gradients(
            at_size(spatial_reduction, 6, 8), inputs, torch.empty(0, 12, 16)
        )
    assert y.shape == (0, 12, 16)
    assert dx.shape == (0, 48, 16)
    assert all((g == 0).all() for g in dparameters)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_autocast_casts_all_but_the_layer_norm(backend):
    x, weight, bias, norm_weight, norm_bias = random_inputs(1, 6, 8, 16, 2)
    lower = [t.bfloat16() for t in (x, weight, bias)]
    with use_backend(backend):
        expected = spatial_reduction(lower[0], 6, 8, *lower[1:], norm_weight, norm_bias)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = spatial_reduction(x, 6, 8, weight, bias, norm_weight, norm_bias)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def test_flops_are_those_of_the_products():
    inputs = [t.to("meta").requires_grad_() for t in random_inputs(2, 7, 9, 16, 3)]
    with use_backend("reference"), FlopCounterMode(display=False) as forward:
        y = spatial_reduction(inputs[0], 7, 9, *inputs[1:])
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    product = 2 * 2 * 6 * 16 * 9 * 16
    assert forward.get_total_flops() == product
    assert backward.get_total_flops() == 2 * product


W44 = (4, 4, 2, 2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(24, 4)}, ValueError, r"x must have the shape .* got \(24, 4\)"),
        ({"x": None}, TypeError, "x must be a tensor .* got NoneType"),
        ({"x": torch.zeros(2, 24, 4).int()}, TypeError, r"x must be .* got torch\.int32"),
        ({"x": torch.zeros(2, 25, 4)}, ValueError, r"x must have N = H\*W = 4\*6 = 24 .* got 25"),
        ({"H": 1}, ValueError, "H must be at least 2, got 1"),
        ({"W": -6}, ValueError, "W must be at least 2, got -6"),
        ({"H": 4.0}, TypeError, r"H must be an int, got 4\.0"),
        ({"weight": torch.zeros(4, 4, 2, 3)}, ValueError, r"weight must .* got \(4, 4, 2, 3\)"),
        ({"weight": torch.zeros(8, 4, 2, 2)}, ValueError, r"weight must .* got \(8, 4, 2, 2\)"),
        ({"weight": torch.zeros(4, 4)}, ValueError, r"weight must .* got \(4, 4\)"),
        ({"weight": torch.zeros(W44).half()}, TypeError, r"weight must .* got torch\.float16"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must .* \(4,\), got \(3,\)"),
        ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias must be on .* got meta"),
        ({"norm_weight": torch.zeros(4).half()}, TypeError, r"norm_weight must .* torch\.float16"),
        ({"norm_bias": torch.zeros(1)}, ValueError, r"norm_bias must .* \(4,\), got \(1,\)"),
        ({"eps": 0.0}, ValueError, r"eps must be above 0, got 0\.0"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {
        "x": torch.zeros(2, 24, 4),
        "H": 4,
        "W": 6,
        "weight": torch.zeros(W44),
        "bias": torch.zeros(4),
        "norm_weight": torch.ones(4),
        "norm_bias": torch.zeros(4),
    }
    with pytest.raises(error, match=f"spatial_reduction: {message}"):
        spatial_reduction(**(arguments | changes))


def test_the_backward_checks_the_incoming_gradient():
    x, *parameters = random_inputs(1, 4, 6, 8, 2)
    forward = torch.ops.pvt_kernels.spatial_reduction_forward
    y, normalized, rstd = forward(x, 4, 6, *parameters, EPS, "reference")
    with pytest.raises(ValueError, match="dy must have the shape"):
        torch.ops.pvt_kernels.spatial_reduction_backward(
            y[:, 1:], x, 4, 6, parameters[0], parameters[2], normalized, rstd, "reference"
        )
