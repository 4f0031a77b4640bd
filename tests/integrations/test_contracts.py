"""patch() swaps what it knows, leaves alone what only looks alike, and never raises."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pvt_kernels
from pvt_kernels.integrations.classes import is_patched

from .doubles import Block, OpenMMLabAttention, PvtAttention, PvtV2LinearAttention


class WithWeights(PvtAttention):
    """A fork that returns the attention weights too."""

    def forward(self, x, H, W):
        out = super().forward(x, H, W)
        return out, out.new_zeros(1)


class Cosine(PvtAttention):
    """A fork with another formula on the same parameters."""

    def forward(self, x, H, W):
        heads = (self.num_heads, self.dim // self.num_heads)
        q = F.normalize(self.q(x).unflatten(-1, heads).transpose(1, 2), dim=-1)
        kv = self.kv(x if self.sr_ratio == 1 else self._reduced(x, H, W))
        k, v = kv.unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        weights = (q @ F.normalize(k, dim=-1).mT).softmax(-1)
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))

    def _reduced(self, x, H, W):
        image = x.transpose(1, 2).unflatten(2, (H, W))
        return self.norm(self.sr(image).flatten(2).transpose(1, 2))


class ValuesFirst(PvtAttention):
    """A fork whose one matrix has the values first."""

    def forward(self, x, H, W):
        rolled = copy.deepcopy(self)
        rolled.__class__ = PvtAttention
        C = self.dim
        rolled.kv.weight = nn.Parameter(self.kv.weight.roll(C, 0))
        rolled.kv.bias = nn.Parameter(self.kv.bias.roll(C, 0))
        return rolled(x, H, W)


class Residual(PvtAttention):
    def forward(self, x, H, W):
        return x + super().forward(x, H, W)


class Padded(PvtAttention):
    """A fork that pads the rows and columns which the reduction leaves over."""

    def forward(self, x, H, W):
        image = F.pad(x.mT.unflatten(2, (H, W)), (0, -W % self.sr_ratio, 0, -H % self.sr_ratio))
        reduced = self.norm(self.sr(image).flatten(2).transpose(1, 2))
        alone = copy.deepcopy(self)
        alone.__class__, alone.sr_ratio = PvtAttention, 1
        heads = (self.num_heads, self.dim // self.num_heads)
        q = self.q(x).unflatten(-1, heads).transpose(1, 2)
        k, v = self.kv(reduced).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        o = (q @ k.mT * self.scale).softmax(-1) @ v
        return self.proj(o.transpose(1, 2).flatten(2))


class DropKey(PvtAttention):
    """Li et al., CVPR 2023: a share of the keys is left out in training."""

    def forward(self, x, H, W):
        if not self.training:
            return super().forward(x, H, W)
        heads = (self.num_heads, self.dim // self.num_heads)
        q = self.q(x).unflatten(-1, heads).transpose(1, 2)
        y = self.norm(self.sr(x.mT.unflatten(2, (H, W))).flatten(2).mT)
        k, v = self.kv(y).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * self.scale
        scores = scores - 1e12 * torch.bernoulli(torch.full_like(scores, 0.3))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Detached(PvtAttention):
    def forward(self, x, H, W):
        return super().forward(x.detach(), H, W)


class OwnDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class WithOwnDropout(PvtAttention):
    def __init__(self):
        super().__init__()
        self.attn_drop = OwnDropout()


class Named(PvtAttention):
    def forward(self, x, H, W):
        return {"out": super().forward(x, H, W)}


class Raising(PvtAttention):
    def forward(self, x, H, W):
        raise OSError("no such day")


class Untrained(PvtAttention):
    def train(self, mode=True):
        raise OSError("no such mode")


class Rewritten(PvtAttention):
    """A fork that computes the same in another way."""

    def forward(self, x, H, W):
        heads = (self.num_heads, self.dim // self.num_heads)
        q = self.q(x).unflatten(-1, heads).transpose(1, 2)
        y = self.norm(self.sr(x.mT.unflatten(2, (H, W))).flatten(2).mT)
        k, v = self.kv(y).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj_drop(self.proj(o.transpose(1, 2).flatten(2)))


class OpenMMLabWithoutIdentity(OpenMMLabAttention):
    def forward(self, x, hw_shape, identity=None):
        return super().forward(x, hw_shape, identity) - (x if identity is None else identity)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (WithWeights, "its forward returns a tuple of 2, not a Tensor"),
        (Named, "its forward returns a dict, not a Tensor"),
        (Cosine, "its forward computes something else"),
        (ValuesFirst, "its forward computes something else"),
        (Residual, "its forward computes something else"),
        (Padded, "its forward computes something else"),
        (OpenMMLabWithoutIdentity, "its forward computes something else"),
        (DropKey, "its forward computes something else in training"),
        (WithOwnDropout, "its forward computes something else in training"),
        (Detached, "its forward has other gradients in training"),
        (Raising, "its own forward can't be tried: OSError: no such day"),
        (Untrained, "its own forward can't be tried: OSError: no such mode"),
    ],
)
def test_a_fork_that_returns_something_else_is_skipped(make, reason):
    model = nn.Sequential(Block(PvtAttention()), make())
    x = torch.randn(1, 63, 32)
    state, hooks = torch.get_rng_state(), []
    model[1].sr.register_forward_hook(lambda *args: hooks.append(args))
    report = pvt_kernels.patch(model)
    assert report.swapped == ["0.attn"]
    assert report.skipped == {"1": reason}
    assert type(model[1]) is make
    # what was tried left nothing behind
    assert torch.equal(torch.get_rng_state(), state) and not hooks
    assert all(p.grad is None for p in model.parameters())
    assert model[0](x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fork_that_computes_the_same_is_swapped(dtype):
    assert pvt_kernels.patch(Rewritten().to(dtype)).swapped == [""]


@pytest.mark.parametrize("mode", ["inference", "autocast", "default_device", "meta", "forced"])
def test_patching_within_modes(mode, monkeypatch):
    attention = PvtAttention()
    if mode == "inference":
        with torch.inference_mode():
            report = pvt_kernels.patch(attention)
    elif mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            report = pvt_kernels.patch(attention)
    elif mode == "default_device":
        with torch.device("meta"):
            report = pvt_kernels.patch(attention)
    elif mode == "meta":
        report = pvt_kernels.patch(attention.to("meta"))
    else:
        monkeypatch.setenv("PVT_KERNELS_BACKEND", "sdpa")
        report = pvt_kernels.patch(attention)
    assert report.swapped == [""], str(report)


class Scripted(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.head = torch.jit.script(nn.Sequential(nn.Linear(32, 32), nn.ReLU()))

    def forward(self, x):
        return self.head(self.attention(x, 9, 7))


class Broken(nn.Module):
    """A module that raises at whatever it is asked for."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def __getattr__(self, name):
        if name in ("_modules", "forward"):
            return super().__getattr__(name)
        raise ValueError(f"no {name} today")

    def forward(self, x):
        return x


class BrokenAttention(PvtAttention):
    @property
    def scale(self):
        raise ValueError("no scale today")

    @scale.setter
    def scale(self, value):
        pass


def quantised(attention):
    return torch.ao.quantization.quantize_dynamic(attention, {nn.Linear})


def test_nothing_in_a_model_makes_patch_raise():
    lazy = PvtAttention()
    lazy.q = nn.LazyLinear(32)
    uninitialised = nn.Module.__new__(Broken)
    strange = {
        "scripted": Scripted(PvtAttention()),
        "quantised": quantised(PvtAttention(sr_ratio=1)),
        "lazy": lazy,
        "meta": PvtAttention().to("meta"),
        "broken": Broken(),
        "broken_attention": BrokenAttention(),
        "scripted_attention": torch.jit.trace_module(nn.Identity(), {"forward": torch.zeros(1)}),
        "without_init": uninitialised,
        "nothing": None,
        "plain": PvtV2LinearAttention(),
    }
    model = nn.Module()
    for name, module in strange.items():
        if module is None:
            model.register_module(name, None)
        else:
            model._modules[name] = module
    report = pvt_kernels.patch(model)
    assert report.swapped == ["scripted.attention", "quantised", "meta", "plain"]
    assert set(report.skipped) == {
        "scripted.head", "lazy", "broken_attention", "scripted_attention",
    }  # fmt: skip
    assert "compiled" in report.skipped["scripted.head"]
    assert "ValueError: no scale today" in report.skipped["broken_attention"]
    assert "query projection is 32x0" in report.skipped["lazy"]
    x = torch.randn(1, 63, 32)
    outputs = {name: model._modules[name](x, 9, 7) for name in ("quantised", "plain")}
    outputs["scripted"] = model.scripted(x)
    pvt_kernels.unpatch(model)
    assert not any(is_patched(model._modules[name]) for name in ("quantised", "meta", "plain"))
    for name, actual in outputs.items():
        module = model._modules[name]
        expected = module(x) if name == "scripted" else module(x, 9, 7)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_forks_of_transformers_modules():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.SegformerConfig(depths=[1, 1, 1, 1], num_labels=5)
    model = transformers.SegformerForSemanticSegmentation(config)
    head = model.decode_head

    class Averaging(type(head)):
        def forward(self, encoder_hidden_states, **kwargs):
            return super().forward(encoder_hidden_states, **kwargs) / 2

    head.__class__ = Averaging
    report = pvt_kernels.patch(model)
    # the attention and the network of each block
    assert len(report.swapped) == 8
    assert report.skipped == {"decode_head": "its forward computes something else"}

    pvt = transformers.PvtModel(transformers.PvtConfig(image_size=64, depths=[1, 1, 1, 1]))
    ffn = pvt.encoder.block[0][0].mlp

    class AcrossTokens(type(ffn)):
        def forward(self, hidden_states):
            return super().forward(hidden_states - hidden_states.mean(1, keepdim=True))

    ffn.__class__ = AcrossTokens
    report = pvt_kernels.patch(pvt)
    assert report.skipped == {"encoder.block.0.0.mlp": "its forward computes something else"}
