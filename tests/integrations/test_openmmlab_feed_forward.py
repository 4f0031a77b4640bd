"""mmdet's and mmseg's MixFFN, by a stand-in: what is swapped, and when its own forward runs."""

import copy

import pytest
import torch
from torch import nn

import pvt_kernels

from .checks import assert_patch_keeps_results, patched_names, with_lively_weights
from .doubles import OpenMMLabAttention, OpenMMLabMixFFN
from .test_at_call import WAYS, by_a_hook, by_a_parametrization, by_another_tensor

SIZE = (9, 7)


class Layer(nn.Module):
    """As mmdet's PVTEncoderLayer calls both parts."""

    def __init__(self, ffn: nn.Module, attn: nn.Module | None = None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn, self.ffn = attn or OpenMMLabAttention(), ffn

    def forward(self, x):
        x = self.attn(self.norm1(x), SIZE, identity=x)
        return self.ffn(self.norm2(x), SIZE, identity=x)


class MmcvConv(nn.Conv2d):
    """mmcv's wrapper, by its name."""


MmcvConv.__module__, MmcvConv.__name__ = "mmcv.cnn.bricks.wrappers", "Conv2d"


def tokens(batch=2):
    return torch.randn(batch, SIZE[0] * SIZE[1], 32)


def networks(ffn, x):
    decisions = pvt_kernels.explain(ffn, x, SIZE)
    return [d for d in decisions if d.inputs.op == "feed_forward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"mmseg": True}, {"use_conv": False}], ids=str)
def test_results(options, training, dtype):
    model = with_lively_weights(Layer(OpenMMLabMixFFN(**options))).to(dtype).train(training)
    assert_patch_keeps_results(model, tokens(16).to(dtype), swapped=2)


def test_the_op_computes_it():
    ffn, x = OpenMMLabMixFFN().eval(), tokens()
    for conv in (0, 1, 4):
        ffn.layers[conv].__class__ = MmcvConv
    report = pvt_kernels.patch(ffn)
    assert [(row.family, row.swapped, row.backend) for row in report.rows] == [
        ("mmdet PVT, mmseg SegFormer feed-forward", True, "cpu")
    ]
    assert [d.backend for d in networks(ffn, x)] == ["cpu"]


def test_identity_may_be_left_out():
    ffn, x = OpenMMLabMixFFN().eval(), tokens()
    expected = ffn(x, SIZE)
    pvt_kernels.patch(ffn)
    torch.testing.assert_close(ffn(x, hw_shape=SIZE), expected)


def test_stochastic_depth_stays():
    ffn = OpenMMLabMixFFN(drop_path=0.5).train()
    assert pvt_kernels.patch(ffn).swapped == [""]
    x = tokens(8)
    assert networks(ffn, x)
    assert 0.4 < (ffn(x, SIZE) == x).float().mean() < 0.6


def test_dropout_runs_its_own_forward_in_training():
    ffn, x = OpenMMLabMixFFN(ffn_drop=0.3), tokens()

    def output():
        torch.manual_seed(0)
        return ffn(x, SIZE)

    expected = output()
    (row,) = pvt_kernels.patch(ffn).rows
    assert row.reason == "with dropout 0.3, training runs its own"
    assert torch.equal(output(), expected)
    assert not networks(ffn, x)
    assert networks(ffn.eval(), x)


def low_rank(parent, name):
    """As LoRA wraps a convolution."""

    class LowRank(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down = base, nn.Conv2d(base.in_channels, 2, 1, bias=False)
            self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    torch.manual_seed(0)
    setattr(parent, name, LowRank(getattr(parent, name)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((f"layers.{i}", way) for i in (0, 1, 3, 4, 5) for way in WAYS),
        *((f"layers.{i}", low_rank) for i in (0, 4)),
        *((f"layers.{i}", by_a_parametrization) for i in (0, 1, 4)),
        *((f"layers.{i}", by_another_tensor) for i in (0, 1, 4)),
        ("layers.2", by_a_hook),
        ("layers", by_a_hook),
        *(("dropout_layer", way) for way in WAYS[1:]),
    ],
)
@pytest.mark.filterwarnings("ignore:The given NumPy array")
def test_a_part_that_changes_after_patch(name, change):
    ffn = with_lively_weights(OpenMMLabMixFFN()).eval()
    unpatched, x = copy.deepcopy(ffn), tokens()
    assert pvt_kernels.patch(ffn).swapped == [""]
    with torch.no_grad():
        before = ffn(x, SIZE)
        for one in (ffn, unpatched):
            *path, last = name.split(".")
            change(one.get_submodule(".".join(path)), last)
        torch.testing.assert_close(ffn(x, SIZE), unpatched(x, SIZE), rtol=1e-4, atol=1e-5)
        # of int8 only the rounding is seen
        if change is not by_another_tensor:
            assert not torch.allclose(ffn(x, SIZE), before, rtol=1e-3)


def by_a_forked_sequential(ffn):
    class Forked(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * 2

    ffn.layers.__class__ = Forked


def by_a_layer_more(ffn):
    ffn.layers.append(nn.Tanh())


@pytest.mark.parametrize("change", [by_a_forked_sequential, by_a_layer_more])
def test_another_sequence_after_patch(change):
    ffn = OpenMMLabMixFFN().eval()
    unpatched, x = copy.deepcopy(ffn), tokens()
    pvt_kernels.patch(ffn)
    change(ffn)
    change(unpatched)
    assert torch.equal(ffn(x, SIZE), unpatched(x, SIZE))


def test_a_hook_sees_what_it_would_and_its_removal_is_seen():
    ffn, x, seen = OpenMMLabMixFFN().eval(), tokens(), []
    pvt_kernels.patch(ffn)
    handle = ffn.layers[0].register_forward_hook(lambda m, args, out: seen.append(out.shape))
    ffn(x, SIZE)
    assert seen == [(2, 64, *SIZE)]
    handle.remove()
    assert networks(ffn, x)


def test_state_dict_and_parameters_stay():
    model = Layer(OpenMMLabMixFFN())
    before = {name: id(p) for name, p in model.named_parameters()}
    keys, text = list(model.state_dict()), repr(model)
    pvt_kernels.patch(model)
    assert patched_names(model) == ["attn", "ffn"]
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert (list(model.state_dict()), repr(model)) == (keys, text)


class WithoutIdentity(OpenMMLabMixFFN):
    def forward(self, x, hw_shape, identity=None):
        return super().forward(x, hw_shape, x)


class Masked(OpenMMLabMixFFN):
    def forward(self, x, hw_shape, identity=None, mask=None):
        return super().forward(x, hw_shape, identity)


def altered(place=None, layer=None, **attributes):
    ffn = OpenMMLabMixFFN()
    if place is not None:
        ffn.layers[place] = layer
    for name, value in attributes.items():
        setattr(ffn, name, value)
    return ffn


@pytest.mark.parametrize(
    ("ffn", "reason"),
    [
        (altered(0, nn.Conv2d(32, 64, 3, padding=1)), "its fc1 is no convolution of 1 x 1"),
        (altered(4, nn.Linear(64, 32)), "its fc2 is a Linear, not a Conv2d"),
        (altered(4, nn.Conv2d(64, 16, 1)), "its layers do not lead back to the tokens' channels"),
        (altered(1, nn.Conv2d(64, 64, 5, padding=2, groups=64)), "its convolution is not"),
        (altered(2, nn.SiLU()), "its activation is a SiLU, not an exact GELU or ReLU"),
        (altered(3, nn.Tanh()), "its dropout is a Tanh"),
        (altered(gate=nn.Linear(32, 32)), "it has a part that is not known: gate"),
        (altered(gamma=nn.Parameter(torch.ones(32))), "a tensor that is not known: gamma"),
        (altered(layers=nn.Sequential(nn.Conv2d(32, 32, 1))), "a Sequential of 5 or 6 layers"),
        (WithoutIdentity(), "its forward computes something else"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variants_are_left_alone_with_a_reason(ffn, reason):
    report = pvt_kernels.patch(Layer(ffn))
    assert report.swapped == ["attn"]
    assert reason in report.skipped["ffn"]


def test_what_takes_more_than_is_known_is_no_such_network():
    assert pvt_kernels.patch(Layer(Masked())).swapped == ["attn"]
