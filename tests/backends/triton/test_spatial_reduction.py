"""The spatial reduction's kernels in the interpreter: splits, masks, tiles, memory formats."""

import pytest
import torch

from pvt_kernels import spatial_reduction, use_backend

from ...error_budget import with_gradients
from ...ops.cases import LOW_DTYPES
from ...ops.cases.spatial_reduction import at_size, check_against_oracle, random_inputs
from .kernels import needs_interpreter, reduction_tiles, triton_launch, triton_reduction

pytestmark = needs_interpreter


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("splits", [1, 2, 7], indirect=True)
def test_spatial_reduction_with_split_sums(splits, dtype):
    check_against_oracle("triton", 2, 9, 13, 40, 3, dtype)


def test_memory_around_a_map_is_not_used():
    x, *parameters = random_inputs(2, 7, 11, 24, 3)
    around = torch.full((4, 77 + 50, 24), float("nan"))
    around[1:-1, :77] = x
    op = at_size(spatial_reduction, 7, 11)
    dy = torch.randn(2, 6, 24)
    with use_backend("triton"):
        expected = with_gradients(op, (x, *parameters), dy)
        actual = with_gradients(op, (around[1:-1, :77], *parameters), dy)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [72, 136])
def test_the_shipped_tiles(channels, dtype, monkeypatch):
    gpu = triton_launch.Gpu(90, 2)
    for name in ("product_tile", "dx_product_tile"):
        real = getattr(reduction_tiles, name)
        monkeypatch.setattr(
            triton_reduction, name, lambda _, *arguments, real=real: real(gpu, *arguments)
        )
    check_against_oracle("triton", 1, 5, 17, channels, 2, dtype)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
def test_dx_is_added_to_the_gradient_of_another_use(dtype):
    """In fp32, so that it is rounded once; tokens of no patch keep what they had."""
    x, weight, bias, gamma, beta = random_inputs(2, 7, 11, 24, 3, dtype)
    gpu, size = triton_launch.INTERPRETER, (7, 11)
    _, *saved = triton_reduction.forward(x, *size, weight, bias, gamma, beta, 1e-5)
    arguments = (torch.randn(2, 6, 24).to(dtype), x, *size, weight, gamma, *saved)
    alone, *others = triton_reduction.backward(*arguments)
    before = torch.randn_like(x)
    dx = before.clone()
    launches, gradients = triton_reduction.backward_launches(gpu, *arguments, dx=dx)
    triton_launch.run(*launches)
    assert gradients[0] is dx
    assert all(torch.equal(a, e) for a, e in zip(gradients[1:], others, strict=True))
    left_over = torch.ones(7, 11, dtype=torch.bool)
    left_over[:6, :9] = False
    assert torch.equal(dx[:, left_over.flatten()], before[:, left_over.flatten()])
    expected = alone.float() + before.float()
    rounding = torch.finfo(dtype).eps * (alone.abs() + expected.abs()).float()
    assert ((dx.float() - expected).abs() <= rounding).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_weight_and_its_gradient_have_one_memory_format(layout):
    """In channels_last, the convolution's order, nothing is copied on the way in or out."""
    x, weight, *vectors = random_inputs(2, 7, 11, 24, 3)
    weight = weight.contiguous(memory_format=layout)
    dy = torch.randn(2, 6, 24)
    forward, backward = (
        getattr(torch.ops.pvt_kernels, f"spatial_reduction_{direction}").default
        for direction in ("forward", "backward")
    )
    gradients = []
    for name in ("triton", "reference"):
        _, *saved = forward(x, 7, 11, weight, *vectors, 1e-5, name)
        arguments = (dy, x, 7, 11, weight, vectors[1], *saved, name)
        gradients.append(backward(*arguments))
        torch.library.opcheck(backward, arguments, test_utils="test_faketensor")
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert all(dweight.stride() == weight.stride() for _, dweight, *_ in gradients)
    same = triton_reduction.by_token(weight).data_ptr() == weight.data_ptr()
    assert same == (layout == torch.channels_last)
