"""A layer on the CUDA backend: through the operators and their autograd, down to the kernels."""

import pytest
import torch

from pvt_kernels import use_backend

from . import calls


@pytest.mark.parametrize("sr_ratio", [1, 2])
def test_a_layer_gives_what_the_reference_does(device, sr_ratio):
    sizes = (16, 2, sr_ratio, 6, 9)
    actual = device.run("tests.simt.calls.layer_with_gradients", *sizes)
    assert sum(device.counters["loaded"]) > 0
    with use_backend("reference"):
        expected = calls.layer_with_gradients(*sizes)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_tokens_at_any_address_and_of_any_strides(device):
    """Also side by side with others: so that a copy has other strides than they have."""
    sizes = (16, 2, 2, 6, 8)
    for offset in (0, 1, 8):
        actual = device.run("tests.simt.calls.layer_with_gradients", *sizes, offset)
        with use_backend("reference"):
            expected = calls.layer_with_gradients(*sizes, offset)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sr_ratio", [1, 2])
def test_a_layer_makes_few_launches_and_calls(device, sr_ratio):
    calls, launches = {}, {}
    # the second time, what depends on the form alone is known
    for backward in (False, True) * 2:
        form = (64, 2, sr_ratio, backward)
        calls[backward] = device.run("tests.simt.calls.calls_of_a_layer", *form)
        launches[backward] = len(device.counters["loaded"])
    # attention; the product and the norm of the reduction
    assert launches[False] == (3 if sr_ratio > 1 else 1)
    assert launches[True] - launches[False] == (8 if sr_ratio > 1 else 3)
    assert calls[False] < 40
    assert calls[True] < 60
