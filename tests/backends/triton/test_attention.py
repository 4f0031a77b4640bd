"""The attention's kernels in the interpreter: query splits, widths, strides, masks and tiles."""

import mmap

import pytest
import torch

from pvt_kernels import attention, use_backend

from ...error_budget import with_gradients
from ...ops.cases import LOW_DTYPES
from ...ops.cases.attention import check_against_oracle, random_inputs
from .kernels import attention_tiles, needs_interpreter, triton_attention, triton_launch

pytestmark = needs_interpreter
# of Linux, in Python's mmap from 3.13 on: address space alone
MAP_NORESERVE = 0x4000


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("splits", [1, 2, 7], indirect=True)
def test_attention_with_split_queries(splits, dtype):
    # 7 splits of 5 tiles: two have none
    check_against_oracle("triton", 2, 300, 70, 1, 64, dtype=dtype)


@pytest.mark.parametrize("head_dim", [1, 8, 20, 32, 40, 64, 96, 128, 200, 256])
def test_attention_of_every_width(head_dim):
    check_against_oracle("triton", 1, 65, 71, 2, head_dim, dtype=torch.float16)


# PVT's four stages and PVTv2-B0's first, on a map of a quarter of the sides
@pytest.mark.parametrize(
    ("heads", "head_dim", "sr_ratio", "stride"),
    [(1, 64, 8, 4), (2, 64, 4, 8), (5, 64, 2, 16), (8, 64, 1, 32), (1, 32, 8, 4)],
)
def test_the_shapes_of_pvt(heads, head_dim, sr_ratio, stride):
    H, W = 192 // stride, 288 // stride
    M = (H // sr_ratio) * (W // sr_ratio)
    q, k, v = random_inputs(1, H * W, M, heads, head_dim)
    do = torch.randn(1, H * W, heads, head_dim)
    results = []
    for name in ("triton", "reference"):
        with use_backend(name):
            results.append(with_gradients(attention, (q, k, v), do))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
def test_memory_around_the_inputs_is_not_used(dtype):
    """Inputs that lie between rows of NaN give the same bits."""

    def between_nan(t):
        B, N, heads, d = t.shape
        around = torch.full((B + 2, N + 64, heads, d), float("nan"), dtype=dtype)
        around[1:-1, :N] = t
        return around[1:-1, :N]

    q, k, v = random_inputs(2, 70, 37, 2, 40, dtype=dtype)
    do = torch.randn(2, 70, 2, 40).to(dtype)
    with use_backend("triton"):
        expected = with_gradients(attention, (q, k, v), do)
        o, lse = torch.ops.pvt_kernels.attention_forward(q, k, v, 0.3, "triton")
        inside = [between_nan(t) for t in (do, q, k, v)]
        actual = with_gradients(attention, inside[1:], inside[0])
        guarded = torch.ops.pvt_kernels.attention_backward(*inside, o, lse, 0.3, "triton")
        plain = torch.ops.pvt_kernels.attention_backward(do, q, k, v, o, lse, 0.3, "triton")
    for a, e in zip((*actual, *guarded), (*expected, *plain), strict=True):
        assert torch.equal(a, e)


def test_offsets_of_more_than_31_bits():
    """Rows that lie 2^34 + 8 elements apart, in memory of which nearly nothing is touched.

    More than 2^31 units, as strides are passed: the interpreter goes by the number's size where the
    compiler goes by the argument's type, a 64-bit integer.
    """
    pitch = 2**34 + triton_launch.UNIT.value
    reserved = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    far = torch.frombuffer(mmap.mmap(-1, 2 * (pitch + 2**12), reserved), dtype=torch.float16)

    def apart(t, offset):
        strided = far[offset:].as_strided(t.shape, (0, pitch, t.shape[-1], 1))
        return strided.copy_(t)

    q, k, v, do = torch.randn(4, 1, 2, 3, 32).half().unbind()
    with use_backend("triton"):
        expected = with_gradients(attention, (q, k, v), do)
        inputs = [apart(t, 128 * i) for i, t in enumerate((q, k, v))]
        actual = with_gradients(attention, inputs, do)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_nan_in_a_query_stays_in_its_row():
    q, k, v = random_inputs(1, 60, 70, 1, 16)
    with use_backend("triton"):
        expected = attention(q, k, v)
        q[0, 50, 0, 3] = float("nan")
        actual = attention(q, k, v)
    assert actual[0, 50].isnan().all()
    actual[0, 50] = expected[0, 50]
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_scores_far_from_zero_have_gradients(offset):
    """Keys beyond M score 0 within the kernel, which is e^300 times the sum of the true ones."""
    q, k, v = random_inputs(1, 9, 35, 1, 32)
    q[..., 0], k[..., 0] = 1.0, offset
    do = torch.randn(1, 9, 1, 32)
    results = []
    for name in ("triton", "reference"):
        with use_backend(name):
            results.append(with_gradients(lambda *t: attention(*t, scale=1.0), (q, k, v), do))
    # dq's first channel is the offset times a sum that is zero but for rounding
    (o, dq, *rest), (o_, dq_, *rest_) = results
    assert dq.isfinite().all()
    actual, expected = (o, dq[..., 1:], *rest), (o_, dq_[..., 1:], *rest_)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_the_results_are_the_same_every_time():
    inputs = random_inputs(2, 300, 70, 2, 32, dtype=torch.float16)
    do = torch.randn(2, 300, 2, 32)
    with use_backend("triton"):
        first, second = (with_gradients(attention, inputs, do) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", attention_tiles.TILES)
def test_the_first_shipped_tile_of_every_unit(kernel, monkeypatch):
    """The interpreter's own tile is one for all; the shipped ones differ in their sides."""
    shipped = [tiles[64][0] for tiles in attention_tiles.TILES[kernel].values()]
    real = attention_tiles.tile_of
    for tile in dict.fromkeys(shipped):
        monkeypatch.setattr(
            triton_attention,
            "tile_of",
            lambda name, *args, tile=tile: tile if name == kernel else real(name, *args),
        )
        check_against_oracle("triton", 1, 140, 133, 1, 64, dtype=torch.float16)
