"""The feed-forward networks beside the attention, and when they are left alone."""

import pytest
import torch
from torch import nn

import pvt_kernels

from .checks import assert_patch_keeps_results, patched_names, with_lively_weights
from .doubles import Mlp, PvtAttention

H, W = 9, 7


class Model(nn.Module):
    """Attention and a network."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.attn, self.mlp = PvtAttention(), mlp

    def forward(self, x):
        x = x + self.attn(x, H, W)
        return x + self.mlp(x, H, W)


def tokens(batch=2):
    return torch.randn(batch, H * W, 32)


def networks(model):
    return [d for d in pvt_kernels.explain(model, tokens()) if d.inputs.op == "feed_forward"]


@pytest.mark.parametrize("conv", [True, False], ids=["conv", "plain"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_results(conv, training):
    model = with_lively_weights(Model(Mlp(conv=conv))).train(training)
    assert_patch_keeps_results(model, tokens(16), swapped=2)


def test_linear_sras_relu_before_the_convolution():
    model = Model(Mlp(linear=True)).eval()
    x = tokens()
    expected = model(x)
    assert pvt_kernels.patch(model).swapped == ["attn", "mlp"]
    torch.testing.assert_close(model(x), expected)
    (decision,) = networks(model)
    assert decision.backend == "cpu"


def test_dropout_runs_the_modules_own_forward_in_training():
    model = Model(Mlp(drop=0.3))

    def outputs(training):
        torch.manual_seed(0)
        return model.train(training)(x)

    x = tokens()
    with pvt_kernels.patch(model.attn):
        expected = {training: outputs(training) for training in (True, False)}
    report = pvt_kernels.patch(model)
    assert report.rows[1].reason == "with dropout 0.3, training runs its own"
    assert torch.equal(outputs(True), expected[True])
    torch.testing.assert_close(outputs(False), expected[False])
    assert networks(model.eval())
    assert not networks(model.train())


@pytest.mark.parametrize("name", ["fc1", "fc2", "act", "drop", "dwconv", "dwconv.dwconv"])
def test_a_part_that_somebody_listens_to_is_called(name):
    model = Model(Mlp()).eval()
    x = tokens()
    pvt_kernels.patch(model)
    expected = model(x)
    seen = []
    handle = model.mlp.get_submodule(name).register_forward_hook(lambda *args: seen.append(args))
    assert not networks(model)
    seen.clear()
    torch.testing.assert_close(model(x), expected)
    assert seen
    handle.remove()
    assert networks(model)


class LowRank(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return self.base_layer(x) + 0.1 * x.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_a_layer_put_in_its_place_later_is_called(name):
    model = Model(Mlp()).eval()
    x = tokens()
    pvt_kernels.patch(model)
    setattr(model.mlp, name, LowRank(getattr(model.mlp, name)))
    actual = model(x)
    pvt_kernels.unpatch(model.mlp)
    torch.testing.assert_close(actual, model(x))


class Skip(nn.Module):
    """A module around a convolution that does more."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.dwconv = inner, inner.dwconv

    def forward(self, x, H, W):
        return x + self.inner(x, H, W)


def test_a_module_around_the_convolution_that_comes_later_is_called():
    model = Model(Mlp()).eval()
    x = tokens()
    pvt_kernels.patch(model)
    model.mlp.dwconv = Skip(model.mlp.dwconv)
    actual = model(x)
    pvt_kernels.unpatch(model.mlp)
    torch.testing.assert_close(actual, model(x))


def test_a_call_without_the_maps_size_is_the_modules_own_affair():
    class Square(Mlp):
        def forward(self, x, H=None, W=None):
            side = round(x.shape[1] ** 0.5)
            return super().forward(x, H or side, W or side)

    class OfAPair(Mlp):
        def forward(self, x, feat_size=None):
            side = round(x.shape[1] ** 0.5)
            return super().forward(x, *(feat_size or (side, side)))

    x = torch.randn(1, 36, 32)
    for mlp, args in ((Square(), ()), (OfAPair(), ()), (OfAPair(), (None,))):
        expected = mlp(x, *args)
        assert pvt_kernels.patch(mlp).swapped == [""]
        assert torch.equal(mlp(x, *args), expected)
    mlp = Mlp()
    pvt_kernels.patch(mlp)
    with pytest.raises(TypeError, match="missing"):
        mlp(x)


def test_arguments_by_name():
    mlp = Mlp().eval()
    x = torch.randn(1, 36, 32)
    pvt_kernels.patch(mlp)
    expected = mlp(x, 9, 4)
    assert torch.equal(mlp(x, W=4, H=9), expected)
    assert torch.equal(mlp(W=4, x=x, H=9), expected)
    assert not torch.equal(mlp(x, 4, 9), expected)
    with pytest.raises(TypeError, match="height"):
        mlp(x, height=9, width=4)


def test_a_part_of_another_kind_runs_the_modules_own_forward():
    model = Model(Mlp(conv=False)).eval()
    x = tokens()
    pvt_kernels.patch(model)
    model.mlp.act = nn.SiLU()
    actual = model(x)
    pvt_kernels.unpatch(model.mlp)
    assert torch.equal(actual, model(x))


def test_state_dict_and_parameters_stay():
    model = Model(Mlp())
    before = {name: id(p) for name, p in model.named_parameters()}
    keys, text = list(model.state_dict()), repr(model)
    pvt_kernels.patch(model)
    assert patched_names(model) == ["attn", "mlp"]
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert (list(model.state_dict()), repr(model)) == (keys, text)


def altered(**attributes):
    mlp = Mlp()
    for name, value in attributes.items():
        setattr(mlp, name, value)
    return mlp


@pytest.mark.parametrize(
    ("mlp", "reason"),
    [
        (altered(act=nn.SiLU()), "its activation is a SiLU, not an exact GELU or ReLU"),
        (altered(act=nn.GELU("tanh")), "its activation is a GELU, not an exact GELU"),
        (altered(fc2=nn.Linear(64, 16)), "its layers do not lead back to the tokens' channels"),
        (altered(fc1=nn.Conv1d(32, 64, 1)), "its fc1 is a Conv1d, not a Linear"),
        (altered(gate=nn.Linear(32, 32)), "it has a part that is not known: gate"),
        (altered(scale=nn.Parameter(torch.ones(32))), "a tensor that is not known: scale"),
        (altered(norm=nn.LayerNorm(64)), "it has a norm"),
        (altered(relu=nn.GELU()), "before its convolution is a GELU, not a ReLU"),
        (
            altered(dwconv=nn.Conv2d(64, 64, 5, padding=2, groups=64)),
            "its convolution is not depthwise, 3 x 3 and padded by zeros",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variants_are_left_alone_with_a_reason(mlp, reason):
    report = pvt_kernels.patch(Model(mlp))
    assert report.swapped == ["attn"]
    assert reason in report.skipped["mlp"]


def test_a_model_without_such_attention_is_not_touched():
    model = nn.Sequential(Mlp(conv=False))
    with pytest.warns(UserWarning, match="has no spatial-reduction attention"):
        assert not pvt_kernels.patch(model).rows
    assert not patched_names(model)


def test_a_network_alone_is_swapped_when_it_is_asked_for():
    mlp, x = Mlp(), tokens()
    expected = mlp(x, H, W)
    assert pvt_kernels.patch(mlp).swapped == [""]
    torch.testing.assert_close(mlp(x, W=W, H=H), expected)


def test_this_packages_own_network_is_left_alone():
    from pvt_kernels.models.blocks import ConvMlp

    report = pvt_kernels.patch(Model(ConvMlp(32, 64, 0.0, relu=False)))
    assert report.skipped == {"mlp": "it is this package's own"}
