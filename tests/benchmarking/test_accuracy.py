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


def test_budgets_follow_the_eager_errors_up_to_what_eager_may_err_by():
    eps = torch.finfo(torch.float32).eps
    names = ["output", "x"]
    own = accuracy.error_budgets(names, torch.float32, None)
    assert own == {
        "output": accuracy.EAGER_OUTPUT_EPS * eps,
        "x": accuracy.EAGER_GRADIENT_EPS * eps,
    }
    model = accuracy.error_budgets([accuracy.PARAMETERS], torch.float32, None)
    assert model == {"parameters": accuracy.EAGER_PARAMETERS_EPS * eps}
    close = accuracy.error_budgets(names, torch.float32, {"output": eps, "x": eps})
    assert close == {"output": 2 * eps, "x": 3 * eps}
    exact = accuracy.error_budgets(names, torch.float32, {"output": 0.0, "x": 0.1 * eps})
    assert exact == {"output": eps, "x": eps}
    far = accuracy.error_budgets(names, torch.float32, {"output": 1.0, "x": math.nan})
    assert far == {"output": 2 * own["output"], "x": 3 * own["x"]}


def test_verdict_names_the_worst_tensor():
    budgets = {"output": 1e-6, "x": 1e-6, "q.weight": 1e-6}
    assert accuracy.verdict({"output": 1e-6, "x": 0.0, "q.weight": 0.0}, budgets) is None
    text = accuracy.verdict({"output": 2e-6, "x": 3e-6, "q.weight": 0.0}, budgets)
    assert text == "relative error of gradient 'x' is 3.0e-06, allowed 1.0e-06, and 1 more"
    assert "'output' is nan" in accuracy.verdict({"output": math.nan, "x": 9.0}, budgets)
