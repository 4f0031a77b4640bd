"""Every fact about a patched module is looked up at the call: what stands there is what runs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pvt_kernels
from pvt_kernels.integrations.classes import is_patched

from .doubles import OpenMMLabAttention, PvtAttention, PvtV2LinearAttention
from .subclasses import Int8Tensor

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SMALL = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 40, 64],
    "num_labels": 5,
    "decoder_hidden_size": 24,
}
# transformers names the projections of SegFormer's head so, and did otherwise up to 5.1
PROJECTIONS = ("linear_projections", "linear_c")


class Doubled(nn.Linear):
    """As LoRA layers are: a Linear by its class, with something on top of its forward."""

    def forward(self, x):
        return super().forward(x) * 2


class DoubledConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class DoubledNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) * 2


class DoubledDropout(nn.Dropout):
    def forward(self, x):
        return super().forward(x) * 2


KINDS = {
    nn.Linear: Doubled,
    nn.modules.linear.NonDynamicallyQuantizableLinear: Doubled,
    nn.Conv2d: DoubledConv,
    nn.LayerNorm: DoubledNorm,
    nn.Dropout: DoubledDropout,
}


def by_class(module, name):
    child = getattr(module, name)
    child.__class__ = KINDS[type(child)]


def on_the_instance(module, name):
    child = getattr(module, name)
    forward = child.forward
    child.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 2


def by_a_hook(module, name):
    getattr(module, name).register_forward_hook(lambda module, args, out: out * 2)


def by_a_wrapper(module, name):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args):
            return self.inner(*args) * 2

    setattr(module, name, Wrapper(getattr(module, name)))


def by_a_parametrization(module, name):
    class Twice(nn.Module):
        def forward(self, weight):
            return weight * 2

    parametrize.register_parametrization(getattr(module, name), "weight", Twice())


def by_weight_norm(module, name):
    parametrizations.weight_norm(getattr(module, name))
    with torch.no_grad():
        getattr(module, name).parametrizations.weight.original0.mul_(2)


def by_another_tensor(module, name):
    layer = getattr(module, name)
    layer.weight = nn.Parameter(Int8Tensor.quantised(layer.weight.detach()), requires_grad=False)


WAYS = (by_class, on_the_instance, by_a_hook, by_a_wrapper)
OF_WEIGHTS = (by_a_parametrization, by_weight_norm, by_another_tensor)

CASES = [
    *((PvtAttention, name, way) for name in ("q", "kv", "proj", "sr") for way in OF_WEIGHTS),
    *((PvtAttention, name, way) for name in ("q", "kv", "proj", "sr", "norm") for way in WAYS),
    *((PvtAttention, "attn_drop", way) for way in WAYS),
    *((PvtAttention, "proj_drop", way) for way in WAYS),
    *((PvtV2LinearAttention, name, by_a_hook) for name in ("pool", "sr", "norm", "act")),
    *((OpenMMLabAttention, name, way) for name in ("sr", "proj_drop") for way in WAYS),
    (OpenMMLabAttention, "attn.out_proj", by_class),
    (pvt_kernels.SRAttention, "q", by_another_tensor),
    *((pvt_kernels.SRAttention, n, w) for n in ("kv", "sr", "norm") for w in WAYS),
    *((pvt_kernels.SRAttention, n, by_another_tensor) for n in ("kv", "proj", "sr", "norm")),
]


@pytest.mark.filterwarnings("ignore:The given NumPy array")
@pytest.mark.parametrize(("make", "name", "change"), CASES)
def test_a_part_that_changes_after_patch(make, name, change):
    if make is pvt_kernels.SRAttention:
        attention, unpatched = pvt_kernels.SRAttention(32, 2, True, sr_ratio=2).eval(), None
        unpatched = PvtAttention().eval()
        unpatched.load_state_dict(attention.state_dict())
        unpatched.norm.eps = attention.norm.eps
    else:
        attention = make().eval()
        unpatched = copy.deepcopy(attention)
        assert pvt_kernels.patch(attention).swapped == [""]
    mmlab = make is OpenMMLabAttention
    x = torch.randn(2, 8 * 6, 32)
    before = attention(x, (8, 6)) if mmlab else attention(x, 8, 6)
    for module in (attention, unpatched):
        *path, last = name.split(".")
        change(module.get_submodule(".".join(path)), last)
    with torch.no_grad():
        expected, actual = (
            module(x, (8, 6)) if mmlab else module(x, 8, 6) for module in (unpatched, attention)
        )
    torch.testing.assert_close(actual, expected)
    # of int8 only the rounding is seen, and of what a norm follows nothing; torch's own module
    # reads the weights of out_proj and does not call it
    if change is not by_another_tensor and name not in ("attn_drop", "sr", "attn.out_proj"):
        assert not torch.allclose(actual, before, rtol=1e-3)


class Wrapped(nn.Module):
    """Around a torch.nn.MultiheadAttention, without any of its attributes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **inputs):
        out, weights = self.inner(**inputs)
        return out * 2, weights


def test_openmmlabs_attention_in_a_wrapper_after_patch():
    attention = OpenMMLabAttention().eval()
    x = torch.randn(1, 48, 32)
    pvt_kernels.patch(attention)
    before = attention(x, (8, 6))
    attention.attn = Wrapped(attention.attn)
    actual = attention(x, (8, 6))
    pvt_kernels.unpatch(attention)
    assert torch.equal(actual, attention(x, (8, 6)))
    assert not torch.allclose(actual, before, rtol=1e-3)


def test_segformers_fuse_of_another_stride_after_patch():
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**SMALL))
    pvt_kernels.patch(model.eval())
    model.decode_head.linear_fuse.stride = (2, 2)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).logits.shape[2:] == (8, 8)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    "part", ["linear_projections.1.proj", "linear_projections.2", "linear_fuse"]
)
def test_segformers_head_after_patch(part, way):
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**SMALL))
    unpatched = copy.deepcopy(model.eval())
    assert "decode_head" in pvt_kernels.patch(model).swapped
    if not hasattr(model.decode_head, PROJECTIONS[0]):
        part = part.replace(*PROJECTIONS)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x).logits
        for one in (model, unpatched):
            *path, last = part.split(".")
            parent = one.decode_head.get_submodule(".".join(path))
            if way is by_class and last == "2":
                kind = type(parent[2])
                forward = {"forward": lambda self, x, kind=kind: kind.forward(self, x) * 2}
                parent[2].__class__ = type("Forked", (kind,), forward)
            else:
                way(parent, last)
        torch.testing.assert_close(model(x).logits, unpatched(x).logits)
        assert not torch.allclose(model(x).logits, before, rtol=1e-3)


@pytest.mark.parametrize("part", ["self", "output"])
def test_a_container_of_parts_after_patch(part):
    config = transformers.PvtConfig(image_size=64, depths=[1, 1, 1, 1])
    model = transformers.PvtModel(config).eval()
    unpatched = copy.deepcopy(model)
    pvt_kernels.patch(model)
    x = torch.randn(1, 3, 64, 64)
    for one in (model, unpatched):
        attention = one.encoder.block[0][0].attention
        child = getattr(attention, part)
        kind = type(child)

        class Forked(kind):
            def forward(self, *args, **kwargs):
                out = super().forward(*args, **kwargs)
                return (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2

        child.__class__ = Forked
    with torch.no_grad():
        torch.testing.assert_close(
            model(x).last_hidden_state, unpatched(x).last_hidden_state, rtol=1e-4, atol=1e-4
        )


def test_a_class_that_gets_another_forward_after_patch(monkeypatch):
    attention, x = PvtAttention().eval(), torch.randn(1, 24, 32)
    pvt_kernels.patch(attention)
    expected = attention(x, 4, 6)
    forward = PvtAttention.forward
    monkeypatch.setattr(PvtAttention, "forward", lambda self, x, H, W: forward(self, x, H, W) * 2)
    torch.testing.assert_close(attention(x, 4, 6), expected * 2)
    monkeypatch.undo()
    linear = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: linear(self, x) * 2)
    doubled = attention(x, 4, 6)
    pvt_kernels.unpatch(attention)
    torch.testing.assert_close(attention(x, 4, 6), doubled)


def test_another_dtype_size_or_no_dropout_after_patch():
    attention, x = PvtAttention().eval(), torch.randn(1, 24, 32)
    pvt_kernels.patch(attention)
    pruned = copy.deepcopy(attention)
    # half of each head's channels, and twice the channels that come out
    pruned.q, pruned.kv, pruned.proj = nn.Linear(32, 16), nn.Linear(32, 32), nn.Linear(16, 64)
    pruned.dim = 16
    attention.attn_drop = nn.Identity()
    attention.double()
    for one, tokens in ((attention, x.double()), (pruned, x)):
        actual = one(tokens, 4, 6)
        pvt_kernels.unpatch(one)
        torch.testing.assert_close(actual, one(tokens, 4, 6))


def test_dropout_that_is_trained_by_itself():
    for make in (lambda p: PvtAttention(attn_drop=p), lambda p: OpenMMLabAttention(attn_drop=p)):
        attention = make(0.5).eval()
        pvt_kernels.patch(attention)
        x = torch.randn(1, 63, 32)
        size = ((9, 7),) if isinstance(attention, OpenMMLabAttention) else (9, 7)
        (attention.attn if len(size) == 1 else attention.attn_drop).train()
        assert not torch.equal(attention(x, *size), attention(x, *size))
    layer = pvt_kernels.SRAttention(32, 2, attn_drop=0.5).eval()
    layer.attn_drop.train()
    assert not torch.equal(layer(x, 9, 7), layer(x, 9, 7))
    layer.attn_drop = nn.Identity()
    assert torch.equal(layer(x, 9, 7), layer(x, 9, 7))


def test_tied_weights_add_up():
    attention = PvtAttention(sr_ratio=1)
    attention.proj.weight = attention.q.weight
    unpatched = copy.deepcopy(attention)
    pvt_kernels.patch(attention)
    x = torch.randn(2, 24, 32)
    for one in (attention, unpatched):
        one(x, 4, 6).square().sum().backward()
    torch.testing.assert_close(
        attention.q.weight.grad, unpatched.q.weight.grad, rtol=1e-4, atol=1e-4
    )
    assert is_patched(attention)


def test_int8_weights_train_what_is_not_quantised_and_compile():
    layer = pvt_kernels.SRAttention(32, 2, sr_ratio=2)
    by_another_tensor(layer, "kv")
    x = torch.randn(1, 24, 32, requires_grad=True)
    layer(x, 4, 6).sum().backward()
    assert layer.q.weight.grad.abs().sum() > 0 and x.grad.isfinite().all()
    assert [d.inputs.op for d in pvt_kernels.explain(layer, x, 4, 6)] == [
        "spatial_reduction",
        "attention",
    ]
