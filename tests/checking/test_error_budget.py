"""The bar itself: what is within, what is not, and what is no matter of rounding."""

import math

import pytest
import torch

from pvt_kernels.checking.error_budget import Budget

NAMES = ("y", "dx")


def definition(x):
    return x.sin() * 3


def budget():
    samples = [([torch.randn(200).half()], torch.randn(200)) for _ in range(4)]
    return Budget.of(definition, samples, NAMES)


class Erring(torch.autograd.Function):
    """The definition, with relative errors of its output and of its gradient."""

    @staticmethod
    def forward(ctx, x, output_error, gradient_error):
        ctx.save_for_backward(x)
        ctx.error = gradient_error
        return (definition(x.double()) * (1 + output_error)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        exact = grad.double() * x.double().cos() * 3
        return (exact * (1 + ctx.error)).to(x.dtype), None, None


def compare(output_error=0.0, gradient_error=0.0):
    return budget().compare(lambda x: Erring.apply(x, output_error, gradient_error))


def test_exact_results_are_within():
    assert all(c.within and c.share < 1 for c in compare())


@pytest.mark.parametrize(
    ("errors", "above"), [((0.01, 0.0), "y"), ((0.0, 0.01), "dx"), ((math.nan, 0.0), "y")]
)
def test_an_error_beyond_the_budget_is_named(errors, above):
    comparisons = compare(*errors)
    assert [c.name for c in comparisons if not c.within] == [above]
    worst = max(comparisons, key=lambda c: c.share)
    assert worst.name == above and worst.share > 1
    assert str(worst).startswith(f"{above}: error ")


def test_gradients_may_err_three_times_as_much_as_pytorch_and_outputs_twice():
    output, gradient = compare()
    assert output.allowed == pytest.approx(max(2 * output.pytorch, 2**-10))
    assert gradient.allowed == pytest.approx(max(3 * gradient.pytorch, 2**-10))


def test_another_shape_or_dtype_is_a_fault():
    (y, dx) = budget().compare(lambda x: definition(x).float())
    assert not y.within and "torch.float32 instead of torch.float16" in str(y)
    assert dx.within


@pytest.mark.parametrize(("roundings", "within"), [(20, True), (100, False), (math.nan, False)])
def test_of_an_exact_zero_some_roundings_are_allowed(roundings, within):
    # with one key q has no gradient, but a kernel leaves dP - delta, a difference of equal sums
    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.full_like(grad, roundings * torch.finfo(grad.dtype).eps), grad

    def definition(x, y):
        return 0 * x + y

    samples = [([torch.randn(100).half(), torch.randn(100).half()], torch.randn(100))]
    _, dx, dy = Budget.of(definition, samples, ("o", "dx", "dy")).compare(Noisy.apply)
    assert dx.within == within
    assert dy.within


def test_an_empty_batch_is_within():
    samples = [([torch.empty(0, 3)], torch.empty(0, 3))]
    assert all(c.within for c in Budget.of(definition, samples, NAMES).compare(definition))
