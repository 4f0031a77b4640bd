"""The fused layer's kernel in the interpreter, against the unfused form and the definition."""

import pytest
import torch

from pvt_kernels import SRAttention, multi_head_attention, use_backend
from pvt_kernels.backends.reference import multi_head_attention as reference

from ...ops.cases import LOW_DTYPES
from ...ops.cases.multi_head_attention import check_against_oracle, random_inputs
from .kernels import linear_gradients, needs_interpreter, triton_launch, triton_mha

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


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("C", [32, 64, 128])
def test_the_weights_gradients_of_two_narrow_layers(C, dtype):
    """Of rows that are no whole number of tiles, between others; biases from the same rows."""
    layers = [[t[3:, :C] for t in torch.randn(2, 303, C + 8).to(dtype)] for _ in range(2)]
    launches, gradients = linear_gradients.linear_gradients_launches(
        triton_launch.INTERPRETER, [[triton_launch.wide_rows(t) for t in pair] for pair in layers]
    )
    triton_launch.run(*launches)
    for (dweight, dbias), (dresults, inputs) in zip(gradients, layers, strict=True):
        exact = dresults.double().T @ inputs.double(), dresults.double().sum(0)
        for actual, expected in zip((dweight, dbias), exact, strict=True):
            assert actual.dtype == dtype
            torch.testing.assert_close(
                actual.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4
            )


def test_narrow_layers_leave_long_sums_to_their_kernel(launched):
    """Two launches, in place of two products and two sums."""
    sizes = (2, 20000, 950, 1, 64)
    with torch.device("meta"):
        inputs = random_inputs(*sizes, torch.float16)
    x, y, *layers = inputs
    out, o, kv, lse = triton_mha.forward(x, y, *layers, 1, 0.1, True)
    saved = [layers[i] for i in (0, 1, 2, 4)]
    gradients = triton_mha.backward(out, x, y, *saved, o, kv, lse, 0.1)
    names = [launch.kernel.__name__ for launch in launched]
    assert names[-2:] == ["linear_gradients_kernel", "fold_kernel"]
    assert [t.shape for t in gradients] == [t.shape for t in inputs]


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_takes_the_gradients_of_its_narrow_projections(monkeypatch, bias):
    """As of long sums, with a gradient of the output that is one number."""
    monkeypatch.setattr(linear_gradients, "pays", lambda *_: True)
    layer = SRAttention(64, 1, qkv_bias=bias, sr_ratio=2)
    x = torch.randn(2, 9 * 13, 64)
    results = []
    for name in ("triton", "reference"):
        tokens = x.clone().requires_grad_()
        with use_backend(name):
            loss = layer(tokens, 9, 13).sum()
        results.append(torch.autograd.grad(loss, [tokens, *layer.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
