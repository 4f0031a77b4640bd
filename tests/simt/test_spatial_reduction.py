"""The CUDA kernels of the spatial reduction, run on the CPU, against the definition in fp64."""

import math

import pytest
import torch

from pvt_kernels.backends.reference import spatial_reduction as reference

from ..error_budget import check_error_budget, samples_for_a_ratio, with_gradients
from ..ops.cases.spatial_reduction import NAMES, at_size, random_inputs
from .counters import Bytes, check_bank_conflicts, check_bytes
from .device import CODES

CUDA = "pvt_kernels.backends.cuda.spatial_reduction"

# (B, H, W, C, R): divisible, with rows and columns left over, one patch an image, no reduction,
# several tiles of channels
SHAPES = (
    (4, 24, 40, 16, 8),
    (3, 41, 27, 32, 4),
    (20, 3, 3, 40, 2),
    (3, 7, 13, 16, 1),
    (5, 10, 14, 136, 2),
)


def on(device):
    """spatial_reduction(x, H, W, ...) on the device, differentiable."""

    class SpatialReduction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, H, W, weight, bias, norm_weight, norm_bias, eps):
            arguments = (x, H, W, weight, bias, norm_weight, norm_bias, eps)
            y, normalized, rstd = device.run(f"{CUDA}.forward", *arguments)
            ctx.save_for_backward(weight, norm_weight, normalized, rstd)
            ctx.x, ctx.H, ctx.W = x, H, W
            return y

        @staticmethod
        def backward(ctx, dy):
            dx, *dparameters = device.run(
                f"{CUDA}.backward", dy, ctx.x, ctx.H, ctx.W, *ctx.saved_tensors
            )
            return dx, None, None, *dparameters, None

    return SpatialReduction.apply


def check_against_oracle(device, B, H, W, C, R, dtype):
    M = (H // R) * (W // R)
    samples = [
        (random_inputs(B, H, W, C, R, dtype), torch.randn(B, M, C))
        for _ in range(samples_for_a_ratio(rows=B * M))
    ]
    definition = reference.spatial_reduction
    check_error_budget(at_size(on(device), H, W), at_size(definition, H, W), samples, NAMES)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_budget(device, code, shape):
    device.choose(code)
    device.seed = sum(shape)
    check_against_oracle(device, *shape, code.dtype)


@pytest.mark.parametrize("multiprocessors", [1, 8, 100])
def test_any_number_of_splits(device, multiprocessors):
    device.multiprocessors = multiprocessors
    check_against_oracle(device, 4, 24, 40, 16, 8, torch.float16)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_the_order_of_the_threads_does_not_matter(device, code):
    device.choose(code)
    inputs, dy = random_inputs(2, 9, 13, 24, 2, code.dtype), torch.randn(2, 24, 24)
    results = []
    for device.seed in range(4):
        results.append(with_gradients(at_size(on(device), 9, 13), inputs, dy))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_tokens_of_no_patch_get_no_gradient(device):
    inputs, dy = random_inputs(2, 7, 8, 16, 3), torch.randn(2, 4, 16)
    dx = with_gradients(at_size(on(device), 7, 8), inputs, dy)[1].view(2, 7, 8, 16)
    assert dx[:, 6:].eq(0).all()
    assert dx[:, :, 6:].eq(0).all()
    assert dx[:, :6, :6].ne(0).all()


def test_inputs_of_any_strides_and_addresses(device):
    x, *parameters = random_inputs(2, 6, 8, 16, 2)
    op, dy = at_size(on(device), 6, 8), torch.randn(2, 1, 1).expand(2, 12, 16)
    expected = with_gradients(op, (x, *parameters), dy.contiguous())
    for strided in (x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat((x, x), 2)[..., 16:]):
        assert not strided.is_contiguous()
        actual = with_gradients(op, (strided, *parameters), dy)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_saved_tensors_at_any_address(device, dtype):
    x, weight, *vectors = random_inputs(2, 6, 8, 16, 2, dtype)
    dy, *saved = device.run(f"{CUDA}.forward", x, 6, 8, weight, *vectors, 1e-5)

    def gradients(dy, weight, norm_weight, *saved):
        return device.run(f"{CUDA}.backward", dy, x, 6, 8, weight, norm_weight, *saved)

    arguments = dy, weight, vectors[1], *saved
    odd = (torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape) for t in arguments)
    for actual, expected in zip(gradients(*odd), gradients(*arguments), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_norm_in_fp32(device, dtype):
    """Its gradients in fp32, of which those in the dtype are roundings; all else is the same."""
    inputs, dy = random_inputs(2, 6, 8, 16, 2, dtype), torch.randn(2, 12, 16)
    op = at_size(on(device), 6, 8)
    narrow = with_gradients(op, inputs, dy)
    wide = with_gradients(op, (*inputs[:3], inputs[3].float(), inputs[4].float()), dy)
    assert [t.dtype for t in wide[4:]] == [torch.float32] * 2
    for actual, expected in zip(wide, narrow, strict=True):
        assert torch.equal(actual.to(dtype), expected)


def test_a_weight_in_channels_last(device):
    x, weight, *vectors = random_inputs(2, 6, 8, 16, 2)
    op, dy = at_size(on(device), 6, 8), torch.randn(2, 12, 16)
    expected = with_gradients(op, (x, weight, *vectors), dy)
    last = weight.to(memory_format=torch.channels_last)
    actual = with_gradients(op, (x, last, *vectors), dy)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_an_empty_batch_gives_empty_results_and_zeros(device):
    inputs = random_inputs(0, 6, 8, 16, 2)
    y, dx, *dparameters = with_gradients(at_size(on(device), 6, 8), inputs, torch.empty(0, 12, 16))
    assert y.shape == (0, 12, 16)
    assert dx.shape == (0, 48, 16)
    assert all(t.eq(0).all() for t in dparameters)


def test_channels_that_do_not_fit_are_refused(device):
    with pytest.raises(ValueError, match=r"channels must be a multiple of 8 up to 4096, got 12"):
        with_gradients(
            at_size(on(device), 2, 2), random_inputs(1, 2, 2, 12, 2), torch.ones(1, 1, 12)
        )


def test_every_launch_is_checked(device):
    x, weight, *vectors = random_inputs(1, 2, 2, 8, 2)
    y, *saved = device.run(f"{CUDA}.forward", x, 2, 2, weight, *vectors, 1e-5)
    own = "spatial_reduction_{}".format
    for (direction, *arguments), kernels in (
        (("forward", x, 2, 2, weight, *vectors, 1e-5), [own("product"), own("normalize")]),
        (
            ("backward", y, x, 2, 2, weight, vectors[1], *saved),
            [*map(own, ("dz", "dx", "dweight", "sums")), "fold"],
        ),
    ):
        for device.failing_launch, kernel in enumerate(kernels):
            message = rf"^spatial_reduction_{direction}: {kernel}<sm80, float32>, .*: cudaLaunch"
            with pytest.raises(RuntimeError, match=message):
                device.run(f"{CUDA}.{direction}", *arguments)
        device.failing_launch = len(kernels)
        device.run(f"{CUDA}.{direction}", *arguments)
        assert len(device.counters["loaded"]) == len(kernels)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_bytes_moved_and_bank_conflicts(device, code):
    """Every byte once, but for the weight and dz, which each tile of the others reads."""
    B, H, W, C, R = 2, 24, 40, 64, 4
    device.choose(code)
    device.watch_banks, device.multiprocessors = True, 16
    patches, depth = B * (H // R) * (W // R), R * R * C
    x, *parameters = random_inputs(B, H, W, C, R, code.dtype)
    size = x.element_size()
    weight, row = depth * C * size, C * 4
    row_tiles, depth_tiles = math.ceil(patches / 64), depth // 64

    y, normalized, rstd = device.run(f"{CUDA}.forward", x, H, W, *parameters, 1e-5)
    # of 32 steps of the depth, and of 4 of the patches
    splits, dweight_splits = (8, 1) if size == 2 else (16, 2)
    partials = splits * patches * row
    vectors_again = patches * 3 * C * size
    check_bytes(
        device,
        Bytes(x.nbytes + weight, partials, again=(row_tiles - 1) * weight),
        Bytes(partials, y.nbytes + normalized.nbytes + rstd.nbytes, again=vectors_again),
    )
    check_bank_conflicts(device)

    device.run(f"{CUDA}.backward", y, x, H, W, parameters[0], parameters[2], normalized, rstd)
    # 16 patches for each partial sum
    dweight_partials, sum_partials = dweight_splits * depth * row, math.ceil(patches / 16) * 3 * row
    dz = patches * C * size
    check_bytes(
        device,
        # each lane of a warp loads the row's rstd
        Bytes(
            y.nbytes + normalized.nbytes + rstd.nbytes,
            dz,
            again=patches * C * size + 31 * rstd.nbytes,
        ),
        Bytes(dz + weight, x.nbytes, again=(depth_tiles - 1) * dz + (row_tiles - 1) * weight),
        Bytes(x.nbytes + dz, dweight_partials, again=(depth_tiles - 1) * dz),
        Bytes(y.nbytes + dz + normalized.nbytes, sum_partials),
        Bytes(dweight_partials + sum_partials, weight + 3 * C * size),
    )
    check_bank_conflicts(device)
