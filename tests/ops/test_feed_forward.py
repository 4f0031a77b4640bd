"""The feed-forward op on every backend that runs here, against the definition in fp64."""

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from pvt_kernels import explain, feed_forward, use_backend
from pvt_kernels.backends import FeedForwardInputs
from pvt_kernels.backends.reference import feed_forward as reference
from pvt_kernels.backends.registry import BACKENDS
from pvt_kernels.backends.sdpa import feed_forward as sdpa

from ..error_budget import with_gradients
from .cases import (
    BACKEND_PARAMS,
    FAST_BACKENDS,
    LOW_DTYPES,
    budget_cases,
    skip_unless_supported,
)
from .cases.feed_forward import Case, check_against_oracle, of_tensors, random_inputs

# a map of several slabs in both directions, of one, of one token, of a row; odd channels; without
# a convolution; the other activations
CASES = (
    Case(1, 40, 70, 32, 96),
    Case(2, 7, 9, 64, 256),
    Case(2, 1, 1, 8, 16),
    Case(1, 1, 50, 24, 70),
    Case(1, 23, 5, 19, 33),
    Case(2, 10, 15, 48, 130, conv=False),
    Case(1, 50, 1, 8, 32, conv=False),
    Case(1, 9, 14, 32, 64, relu_before_conv=True),
    Case(2, 6, 8, 16, 64, activation="relu"),
    Case(1, 17, 1, 21, 35, conv=False, activation="relu"),
)


@pytest.mark.parametrize(("case", "dtype", "backend"), budget_cases(CASES))
def test_error_budget(case, dtype, backend):
    check_against_oracle(backend, case, dtype)


ANY_CASE = st.builds(
    Case,
    B=st.integers(1, 2),
    H=st.integers(1, 40),
    W=st.integers(1, 40),
    C=st.integers(1, 70),
    D=st.integers(1, 150),
    conv=st.booleans(),
    activation=st.sampled_from(("gelu", "relu")),
    relu_before_conv=st.booleans(),
).map(lambda case: case._replace(relu_before_conv=case.conv and case.relu_before_conv))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from(FAST_BACKENDS), ANY_CASE, st.sampled_from(LOW_DTYPES))
def test_error_budget_of_any_shape(backend, case, dtype):
    check_against_oracle(backend, case, dtype)


FOUR = [
    Case(2, 3, 4, 5, 6),
    Case(1, 3, 4, 5, 6, relu_before_conv=True),
    Case(1, 3, 4, 5, 6, conv=False),
    Case(1, 3, 4, 5, 6, conv=False, activation="relu"),
]


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
@pytest.mark.parametrize("case", FOUR, ids=str)
def test_gradcheck(case, backend):
    device = torch.device("cpu")
    skip_unless_supported(backend, FeedForwardInputs(device, torch.float64, 5, 6, True, False))
    inputs = [t.requires_grad_() for t in random_inputs(case, torch.float64)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(of_tensors(feed_forward, case), inputs)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
@pytest.mark.parametrize("case", FOUR, ids=str)
def test_without_biases(case, backend):
    x, *layers = random_inputs(case)
    weights, zeros = layers[::2], [torch.zeros(len(bias)) for bias in layers[::2]]
    if not case.conv:
        weights.insert(1, None)
        zeros.insert(1, None)
    given = [t for t in (x, *weights) if t is not None]
    do = torch.randn(x.shape)

    def run(biases):
        def op(x, *weights):
            fc1, *conv, fc2 = weights
            layers = (fc1, biases[0], *(conv or [None]), biases[1], fc2, biases[2])
            return feed_forward(x, case.H, case.W, *layers, *case.options)

        with use_backend(backend):
            return with_gradients(op, given, do)

    for actual, expected in zip(run((None, None, None)), run(zeros), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_strided_inputs_give_what_contiguous_ones_do(backend):
    case = Case(2, 5, 6, 8, 20)
    x, *layers = random_inputs(case)
    strided = [
        x.transpose(1, 2).contiguous().transpose(1, 2),
        *(t.T.contiguous().T if t.dim() == 2 else torch.stack((t, t), -1)[..., 0] for t in layers),
    ]
    assert not any(t.is_contiguous() for t in strided)
    do = torch.randn(2, 8, 30).transpose(1, 2)
    with use_backend(backend):
        expected = with_gradients(of_tensors(feed_forward, case), (x, *layers), do.contiguous())
        actual = with_gradients(of_tensors(feed_forward, case), strided, do)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
@pytest.mark.parametrize("case", FOUR[::2], ids=str)
def test_an_expanded_gradient_gives_that_of_ones(case, backend):
    inputs = [t.requires_grad_() for t in random_inputs(case)]
    with use_backend(backend):
        result = of_tensors(feed_forward, case)(*inputs)
    expanded = torch.autograd.grad(result.sum(), inputs, retain_graph=True)
    ones = torch.autograd.grad(result, inputs, torch.ones_like(result))
    for actual, expected in zip(expanded, ones, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
@pytest.mark.parametrize("case", [Case(0, 3, 4, 5, 6), Case(0, 3, 4, 5, 6, conv=False)], ids=str)
def test_an_empty_batch_gives_empty_results(case, backend):
    inputs = random_inputs(case)
    with use_backend(backend):
        results = with_gradients(of_tensors(feed_forward, case), inputs, torch.empty(0, 12, 5))
    assert [r.shape for r in results[1:]] == [t.shape for t in inputs]
    for gradient in results[2:]:
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_autocast_casts_the_inputs(backend):
    case = Case(1, 5, 6, 8, 16)
    inputs = random_inputs(case)
    with use_backend(backend):
        expected = of_tensors(feed_forward, case)(*(t.bfloat16() for t in inputs))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = of_tensors(feed_forward, case)(*inputs)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_a_class_token_may_come_along_without_a_convolution(backend):
    x, *layers = random_inputs(Case(1, 13, 1, 8, 16, conv=False))
    fc1, fc2 = layers[:2], layers[2:]
    with use_backend(backend):
        actual = feed_forward(x, 3, 4, *fc1, None, None, *fc2)
    expected = reference.feed_forward(x, 3, 4, *fc1, None, None, *fc2, "gelu", False)
    torch.testing.assert_close(actual, expected)


def test_only_what_the_backward_reads_is_saved():
    case = Case(1, 30, 30, 8, 64)
    inputs = [t.requires_grad_() for t in random_inputs(case)]
    saved = []
    with (
        use_backend("cpu"),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        of_tensors(feed_forward, case)(*inputs)
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in inputs[:-1]]


def test_dropout_runs_pytorchs_form_and_drops():
    case = Case(1, 6, 7, 8, 64)
    x, *layers = random_inputs(case)
    (decision,) = explain(feed_forward, x, 6, 7, *layers, dropout_p=0.5)
    assert decision.backend == "sdpa"
    assert "dropout of the hidden layer is active" in decision.reasons["cpu"]
    with use_backend("sdpa"):
        dropped = feed_forward(x, 6, 7, *layers, dropout_p=0.5)
        assert not torch.equal(dropped, feed_forward(x, 6, 7, *layers))


def test_the_choice_knows_whether_gradients_are_recorded():
    case = Case(1, 6, 7, 8, 64)
    x, *layers = random_inputs(case)
    for layers[0].requires_grad in (False, True):
        (decision,) = explain(feed_forward, x, 6, 7, *layers)
        assert decision.inputs.gradients == layers[0].requires_grad
        with torch.no_grad():
            (decision,) = explain(feed_forward, x, 6, 7, *layers)
        assert not decision.inputs.gradients


def test_triton_runs_it_on_gpus_but_for_dropout(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    facts = (torch.device("cuda", 0), torch.float16, 64, 512, False)
    triton = BACKENDS["triton"]
    missing = [] if find_spec("triton") else ["the package triton is not installed"]
    assert triton.not_supported_reasons(FeedForwardInputs(*facts, False)) == missing
    assert triton.not_supported_reasons(FeedForwardInputs(*facts, True)) == [
        *missing,
        "dropout of the hidden layer is active",
    ]


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("case", FOUR[1:3], ids=str)
def test_opcheck(case, backend):
    facts = (torch.device("cpu"), torch.float32, case.C, case.D, case.conv, False)
    skip_unless_supported(backend, FeedForwardInputs(*facts))
    inputs = [t.requires_grad_() for t in random_inputs(case)]
    layers = inputs[1:]
    if not case.conv:
        layers[2:2] = [None, None]
    options = (*case.options, backend)
    opcheck(
        torch.ops.pvt_kernels.feed_forward_forward, (inputs[0], case.H, case.W, *layers, *options)
    )
    x, *layers = (None if t is None else t.detach() for t in (inputs[0], *layers[:-1]))
    arguments = (torch.randn(x.shape), x, case.H, case.W, *layers, *options)
    opcheck(torch.ops.pvt_kernels.feed_forward_backward, arguments)


@pytest.mark.parametrize(("case", "taps"), [(FOUR[0], 9), (FOUR[2], 0)], ids=str)
def test_flops_are_those_of_the_products_and_taps(case, taps):
    inputs = [t.requires_grad_() for t in random_inputs(case)]
    with use_backend("reference"), FlopCounterMode(display=False) as forward:
        result = of_tensors(feed_forward, case)(*inputs)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    hidden = 2 * case.B * 12 * 6
    assert forward.get_total_flops() == hidden * (2 * 5 + taps)
    assert backward.get_total_flops() == hidden * (5 * 5 + 3 * taps)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(12, 5)}, ValueError, r"x must have the shape .* got \(12, 5\)"),
        ({"x": torch.zeros(2, 13, 5)}, ValueError, r"x must have N = H\*W = 3\*4 = 12 .* got 13"),
        ({"x": torch.zeros(2, 0, 5)}, ValueError, "x's N must be at least 1, got 0"),
        ({"x": torch.zeros(2, 12, 5).int()}, TypeError, r"x must be .* got torch\.int32"),
        ({"W": 4.0}, TypeError, r"W must be an int, got 4\.0"),
        ({"fc1_weight": torch.zeros(6, 4)}, ValueError, r"fc1_weight must .* got \(6, 4\)"),
        ({"fc1_weight": None}, TypeError, "fc1_weight must be a tensor .* got NoneType"),
        ({"fc1_bias": torch.zeros(5)}, ValueError, r"fc1_bias must .* = \(6,\), got \(5,\)"),
        ({"dw_weight": torch.zeros(6, 1, 5, 5)}, ValueError, r"dw_weight .* got \(6, 1, 5, 5\)"),
        ({"dw_bias": torch.zeros(6).half()}, TypeError, "dw_bias must .* got torch.float16"),
        ({"dw_weight": None}, ValueError, "dw_bias is given, but dw_weight is None"),
        (
            {"dw_weight": None, "dw_bias": None, "relu_before_conv": True},
            ValueError,
            "relu_before_conv is given, but dw_weight is None",
        ),
        ({"fc2_weight": torch.zeros(6, 5)}, ValueError, r"fc2_weight must .* got \(6, 5\)"),
        ({"fc2_weight": None}, TypeError, "fc2_weight must be a tensor .* got NoneType"),
        ({"fc2_bias": torch.zeros(6)}, ValueError, r"fc2_bias must .* = \(5,\), got \(6,\)"),
        ({"activation": "silu"}, ValueError, "activation must be one of gelu, relu, got 'silu'"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_input(changes, error, message):
    names = ("x", "fc1_weight", "fc1_bias", "dw_weight", "dw_bias", "fc2_weight", "fc2_bias")
    arguments = dict(zip(names, random_inputs(FOUR[0]), strict=True)) | {"H": 3, "W": 4}
    with pytest.raises(error, match=f"feed_forward: {message}"):
        feed_forward(**arguments | changes)


@pytest.mark.parametrize("case", [Case(2, 21, 10, 8, 64), Case(2, 21, 10, 8, 64, conv=False)])
def test_pytorchs_form_runs_in_slabs_where_nothing_is_differentiated(case, monkeypatch):
    inputs = random_inputs(case)
    with use_backend("sdpa"), torch.no_grad():
        expected = of_tensors(feed_forward, case)(*inputs)
        # a few rows of the map
        monkeypatch.setattr(sdpa, "SLAB_BYTES", 6 * 10 * 64 * 4)
        sizes = []
        whole = sdpa.whole
        monkeypatch.setattr(sdpa, "whole", lambda x, *rest: sizes.append(x) or whole(x, *rest))
        actual = of_tensors(feed_forward, case)(*inputs)
    torch.testing.assert_close(actual, expected)
    assert len(sizes) > 6
    assert max(x.shape[0] * x.shape[1] for x in sizes) <= 60


def test_pytorchs_form_takes_as_many_images_as_a_slab_holds(monkeypatch):
    case = Case(5, 4, 5, 8, 64)
    inputs = random_inputs(case)
    with use_backend("sdpa"), torch.no_grad():
        expected = of_tensors(feed_forward, case)(*inputs)
        monkeypatch.setattr(sdpa, "SLAB_BYTES", 2 * 20 * 64 * 4)
        images = []
        own = sdpa.whole
        monkeypatch.setattr(sdpa, "whole", lambda x, *rest: images.append(len(x)) or own(x, *rest))
        actual = of_tensors(feed_forward, case)(*inputs)
    torch.testing.assert_close(actual, expected)
    assert images == [2, 2, 1]


def test_dropout_is_the_same_with_and_without_gradients(monkeypatch):
    """Checkpointing runs the forward without, and later with them from the same random state."""
    monkeypatch.setattr(sdpa, "SLAB_BYTES", 1)
    case = Case(2, 6, 7, 8, 64)
    x, *layers = random_inputs(case)
    results = []
    for x.requires_grad in (False, True):
        torch.manual_seed(0)
        results.append(feed_forward(x, 6, 7, *layers, dropout_p=0.5).detach())
    torch.testing.assert_close(*results)


def test_images_side_by_side_without_a_convolution():
    """The kernels read them as one; not so rows of which another tensor is a part."""
    case = Case(3, 5, 1, 8, 32, conv=False)
    x, *layers = random_inputs(case)
    dresult = torch.randn(x.shape)
    wider = torch.randn(3, 6, 8)
    wider[:, 1:] = x
    op = of_tensors(feed_forward, case)
    with use_backend("cpu"):
        expected = with_gradients(op, (x, *layers), dresult)
        for strided in (wider[:, 1:], x.transpose(0, 1).contiguous().transpose(0, 1)):
            assert not strided.is_contiguous()
            actual = with_gradients(op, (strided, *layers), dresult)
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e)
