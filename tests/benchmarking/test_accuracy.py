"""The oracle against the plain formula, and how errors are judged."""

import math

import pytest
import torch

from pvt_kernels.benchmarking import accuracy
from pvt_kernels.benchmarking.contenders import (
    EAGER_SRA,
    NAIVE_MHA,
    build_layer,
    build_oracle_layer,
    seeded_state,
)
from pvt_kernels.benchmarking.shapes import LayerShape


def plain(q, k, v, scale):
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("scale", [None, 0.9])
def test_oracle_is_the_plain_formula(chunk, scale):
    torch.manual_seed(0)
    q = torch.randn(2, 64, 3, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 9, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    grad = torch.randn(2, 64, 3, 8, dtype=torch.float64)
    o = accuracy.attention_oracle(q, k, v, scale, chunk)
    wanted = plain(q, k, v, 8**-0.5 if scale is None else scale)
    torch.testing.assert_close(o, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(o, (q, k, v), grad), torch.autograd.grad(wanted, (q, k, v), grad)
    )


def test_oracle_computes_low_precision_inputs_in_fp64():
    q, k, v = (torch.randn(1, 5, 1, 4).bfloat16() for _ in range(3))
    o = accuracy.attention_oracle(q, k, v)
    assert o.dtype == torch.float64
    torch.testing.assert_close(o, plain(q, k, v, 0.5))


def test_oracle_layer_at_some_rows_matches_the_naive_layer_there():
    shape = LayerShape(16, 2, 2, 6, 8)
    state = {k: t.double() for k, t in seeded_state(shape).items()}
    x = torch.randn(1, 48, 16, dtype=torch.float64)
    rows = torch.tensor([0, 5, 47])
    oracle = build_oracle_layer(16, 2, 1, state, rows)
    naive = build_layer(NAIVE_MHA, 16, 2, 2, state)
    torch.testing.assert_close(oracle(x, 6, 8)[:, rows], naive(x, 6, 8)[:, rows])


def test_eager_layer_is_the_formula_of_the_paper():
    shape = LayerShape(16, 2, 2, 6, 8)
    state = {k: t.double() for k, t in seeded_state(shape).items()}
    x = torch.randn(1, 48, 16, dtype=torch.float64)
    F = torch.nn.functional
    reduced = F.conv2d(x.mT.reshape(1, 16, 6, 8), state["sr.weight"], state["sr.bias"], stride=2)
    y = F.layer_norm(
        reduced.flatten(2).mT, (16,), state["norm.weight"], state["norm.bias"], eps=1e-5
    )
    q = F.linear(x, state["q.weight"], state["q.bias"])
    k, v = F.linear(y, state["kv.weight"], state["kv.bias"]).chunk(2, -1)
    o = plain(*(t.unflatten(-1, (2, 8)) for t in (q, k, v)), 8**-0.5).flatten(2)
    wanted = F.linear(o, state["proj.weight"], state["proj.bias"])
    torch.testing.assert_close(build_layer(EAGER_SRA, 16, 2, 2, state)(x, 6, 8), wanted)


def test_relative_error():
    oracle = torch.tensor([3.0, 4.0])
    assert accuracy.relative_error(oracle, oracle) == 0
    assert accuracy.relative_error(torch.tensor([3.0, 4.5]), oracle) == pytest.approx(0.1)
    assert accuracy.relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert accuracy.relative_error(torch.ones(2), torch.zeros(2)) == math.inf
    assert math.isnan(accuracy.relative_error(torch.tensor([math.nan, 0.0]), oracle))
    with pytest.raises(ValueError, match=r"actual: given shape \(3,\), accepted .*\(2,\)"):
        accuracy.relative_error(torch.ones(3), oracle)


EPS = torch.finfo(torch.float32).eps


def test_a_rounding_moves_numbers_by_half_an_eps_at_most():
    exact = torch.linspace(-3, 3, 1000, dtype=torch.float64)
    moved = accuracy.rounded(exact, torch.bfloat16, torch.Generator().manual_seed(0))
    error = ((moved - exact) / exact).abs()
    eps = torch.finfo(torch.bfloat16).eps
    assert 0.4 * eps < error.max() <= 0.5 * eps
    assert 0.2 * eps < error.mean() < 0.3 * eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peers_may_err_by_the_rounding_of_tensors_and_of_long_sums(dtype):
    # a sum of 4096 terms in fp32 errs by the root of that many roundings, whatever the dtype
    allowed = accuracy.peer_budgets({"output": 2e-3, "x": 4e-3}, dtype)
    sums = 64 if dtype == torch.float32 else 64 * EPS / torch.finfo(dtype).eps
    factor = accuracy.ROUNDED_TENSORS + sums
    assert allowed == pytest.approx({"output": 2e-3 * factor, "x": 4e-3 * factor})


def test_the_package_may_err_by_a_multiple_of_the_eager_formula():
    rounding = {"output": EPS, "x": 2 * EPS}
    own = accuracy.peer_budgets(rounding, torch.float32)

    def budgets(output, x):
        return accuracy.package_budgets(rounding, torch.float32, {"output": output, "x": x})

    assert budgets(5 * EPS, 6 * EPS) == pytest.approx({"output": 10 * EPS, "x": 18 * EPS})
    # where eager happens to be exact, one rounding of the inputs is no fault
    assert budgets(0.0, 0.1 * EPS) == rounding
    # where eager is wrong itself, it is no yardstick
    assert budgets(1.0, math.nan) == {"output": 2 * own["output"], "x": 3 * own["x"]}
    assert accuracy.package_budgets(rounding, torch.float32, None) == own


def test_the_rounding_of_a_sum_that_cancels_counts_for_more():
    """What a bias' gradient is: no dtype or machine adds numbers up better than they are given."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(10_000, 8, dtype=torch.float64, generator=generator)
    moved = accuracy.rounded(terms, torch.float32, generator)
    alike = accuracy.relative_error(moved.abs().sum(0), terms.abs().sum(0))
    cancelling = accuracy.relative_error(moved.sum(0), terms.sum(0))
    assert cancelling > 20 * alike


def test_what_no_rounding_explains_is_wrong():
    budgets = {"output": 1e-6, "x": 0.1}
    assert not accuracy.is_wrong({"output": 9e-5, "x": 0.4}, budgets)
    assert accuracy.is_wrong({"output": 2e-4, "x": 0.0}, budgets)
    assert accuracy.is_wrong({"output": 0.0, "x": 0.6}, budgets)
    assert accuracy.is_wrong({"output": 0.0, "x": math.nan}, budgets)


def test_verdict_names_the_worst_tensor():
    budgets = {"output": 1e-6, "x": 1e-6, "q.weight": 1e-6}
    assert accuracy.verdict({"output": 1e-6, "x": 0.0, "q.weight": 0.0}, budgets) is None
    text = accuracy.verdict({"output": 2e-6, "x": 3e-6, "q.weight": 0.0}, budgets)
    assert text == "relative error of gradient 'x' is 3.0e-06, allowed 1.0e-06, and 1 more"
    assert "'output' is nan" in accuracy.verdict({"output": math.nan, "x": 9.0}, budgets)
