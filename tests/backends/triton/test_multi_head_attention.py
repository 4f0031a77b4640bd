"""The fused layer's kernel in the interpreter, against the unfused form and the definition."""

import pytest
import torch

from pvt_kernels import multi_head_attention, use_backend
from pvt_kernels.backends.reference import multi_head_attention as reference

from ...ops.cases import LOW_DTYPES
from ...ops.cases.multi_head_attention import check_against_oracle, random_inputs
from .kernels import needs_interpreter, triton_launch, triton_mha

pytestmark = needs_interpreter
# C, heads: of PVT, PVTv2-B0 and SegFormer
FUSED = ((64, 1), (32, 1), (64, 2))


# the unfused form is that of the widths in the tests of the op
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("C", "heads"), FUSED)
def test_fused_multi_head_attention(C, heads, dtype):
    check_against_oracle("triton", 2, 70, 37, heads, C // heads, dtype=dtype)


@pytest.mark.parametrize("save", [False, True])
def test_the_fused_forward_saves_what_the_unfused_does(monkeypatch, save):
    inputs = random_inputs(2, 70, 37, 2, 32, bias=False)
    forward = torch.ops.pvt_kernels.multi_head_attention_forward
    fused = forward(*inputs, 2, 0.2, save, "triton")
    monkeypatch.setattr(triton_mha, "FUSED_WIDTHS", ())
    unfused = forward(*inputs, 2, 0.2, save, "triton")
    assert fused[1].shape == ((2, 70, 64) if save else (0,))
    torch.testing.assert_close(fused, unfused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_the_fused_forward_takes_any_scale(scale):
    inputs = random_inputs(2, 70, 37, 1, 64)
    forward = torch.ops.pvt_kernels.multi_head_attention_forward
    result, *_ = forward(*inputs, 1, scale, False, "triton")
    expected = reference.multi_head_attention(*inputs, 1, scale)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_the_fused_forward_reads_strided_tokens_and_nothing_around_them():
    x, *others = random_inputs(2, 70, 37, 1, 64, torch.float16)
    around = torch.full((4, 70 + 64, 2 * 64), float("nan"), dtype=torch.float16)
    around[1:-1, :70, :64] = x
    with use_backend("triton"):
        expected = multi_head_attention(x, *others, 1)
        assert torch.equal(multi_head_attention(around[1:-1, :70, :64], *others, 1), expected)


def test_the_forms_are_chosen_by_width_and_dtype():
    gpu = triton_launch.Gpu(90, 132)
    layers = [(32, 32), (64, 64), (128, 64), (96, 32), (128, 128), (160, 32), (320, 64)]
    fused = [
        (C, dtype)
        for C, d in layers
        for dtype in LOW_DTYPES
        if triton_mha.fused_tile(gpu, dtype, C, d, 2, 60800) is not None
    ]
    assert fused == [(C, dtype) for C in (32, 64) for dtype in LOW_DTYPES[:2]]
