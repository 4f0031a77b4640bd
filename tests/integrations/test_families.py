"""The families that don't install here, by their stand-ins, and variants that are left alone."""

import pytest
import torch
from torch import nn

import pvt_kernels

from .checks import assert_patch_keeps_results, with_lively_weights
from .doubles import Block, OpenMMLabAttention, PvtAttention, PvtV2LinearAttention

ATTENTIONS = {
    "pvt": PvtAttention,
    "pvt_unreduced": lambda: PvtAttention(sr_ratio=1, num_heads=4),
    "pvt_dropout": lambda: PvtAttention(proj_drop=0.2),
    "pvt_v2_linear": PvtV2LinearAttention,
    "openmmlab": OpenMMLabAttention,
    "openmmlab_unreduced": lambda: OpenMMLabAttention(sr_ratio=1),
    "openmmlab_no_bias": lambda: OpenMMLabAttention(qkv_bias=False),
    # norm_cfg=dict(type="BN1d") and the like: what is no LayerNorm is called as it is
    "openmmlab_other_norm": lambda: OpenMMLabAttention(norm=nn.Linear(32, 32)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_results(name, training, dtype):
    model = with_lively_weights(Block(ATTENTIONS[name]())).to(dtype).train(training)
    x = torch.randn(16, Block.H * Block.W, 32).to(dtype)
    assert_patch_keeps_results(model, x, swapped=1)


def test_openmmlabs_identity_may_be_left_out():
    attention = OpenMMLabAttention().eval()
    x = torch.randn(1, 63, 32)
    expected = attention(x, (9, 7))
    pvt_kernels.patch(attention)
    torch.testing.assert_close(attention(x, (9, 7)), expected)


def test_openmmlabs_dropouts_of_the_output_stay():
    attention = OpenMMLabAttention(proj_drop=0.5, drop_path=0.5).train()
    pvt_kernels.patch(attention)
    x = torch.randn(8, 63, 32)
    dropped = (attention(x, (9, 7)) == x).float().mean()
    assert 0.7 < dropped < 0.8


@pytest.mark.parametrize("make", [PvtAttention, OpenMMLabAttention])
def test_attention_dropout_runs_the_modules_own_forward_in_training(make):
    model = Block(make(attn_drop=0.3))
    x = torch.randn(2, 63, 32)

    def output(training):
        torch.manual_seed(0)
        return model.train(training)(x)

    expected = {training: output(training) for training in (True, False)}
    report = pvt_kernels.patch(model)
    assert report.rows[0].reason == "with attention dropout 0.3, training runs its own"
    assert torch.equal(output(True), expected[True])
    torch.testing.assert_close(output(False), expected[False])


class WithRelativePositions(PvtAttention):
    def forward(self, x, H, W, relative_pos):
        return super().forward(x, H, W) + relative_pos


def altered(attention, **attributes):
    for name, value in attributes.items():
        setattr(attention, name, value)
    return attention


def with_own_forward(attention):
    return altered(attention, forward=attention.forward)


def without(attention, name):
    delattr(attention, name)
    return attention


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (PvtV2LinearAttention(activation=nn.Tanh), "its activation is a Tanh, not a GELU"),
        (WithRelativePositions(), "its forward takes what is not known: relative_pos"),
        (with_own_forward(PvtAttention()), "its forward was replaced on the instance"),
        (altered(PvtAttention(), extra=nn.Linear(32, 32)), "a part that is not known: extra"),
        (
            altered(PvtAttention(), table=nn.Parameter(torch.zeros(3))),
            "a tensor that is not known: table",
        ),
        (altered(PvtAttention(), q=nn.Linear(32, 16)), "query projection is 16x32, not 32x32"),
        (altered(PvtAttention(), kv=nn.Linear(32, 32)), "key and value projection is 32x32"),
        (altered(PvtAttention(), num_heads=5), "it has 5 heads for 32 channels"),
        (altered(PvtAttention(), sr=nn.Identity()), "its reduction is a Identity, not a Conv2d"),
        (altered(PvtAttention(), pool=nn.AdaptiveAvgPool2d(7)), "a pool or an activation alone"),
        (altered(PvtAttention(), q=nn.Identity()), "it lacks a part: .*'out_features'"),
        (without(PvtAttention(), "norm"), "it has a part of the reduction alone"),
        (without(PvtAttention(), "scale"), "it lacks a part: .*'scale'"),
        (OpenMMLabAttention(batch_first=False), "its tokens don't come batch first"),
        (OpenMMLabAttention(add_bias_kv=True), "keys and values of its own"),
        (
            OpenMMLabAttention(kdim=16, vdim=16, sr_ratio=1),
            "projections are not one matrix",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variants_are_left_alone_with_a_reason(attention, reason):
    kind = type(attention)
    report = pvt_kernels.patch(Block(attention))
    assert report.swapped == []
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report.skipped["attn"])
    assert type(attention) is kind


def test_this_packages_own_layer_is_left_alone():
    report = pvt_kernels.patch(pvt_kernels.SRAttention(32, 2, sr_ratio=2))
    assert report.skipped == {"": "it is this package's own"}
