"""A layer that was called before: nothing that has changed in between goes unnoticed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pvt_kernels import SRAttention, use_backend
from pvt_kernels.ops import repeated

from .listening import HOOKS, ListeningMode

SIZE = 8


@pytest.fixture
def layer(hits):
    """Called twice, so that the next call of its form is found again."""
    layer = SRAttention(64, 2, qkv_bias=True, sr_ratio=4)
    for _ in range(2):
        layer(tokens(), SIZE, SIZE)
        with torch.no_grad():
            layer(tokens(), SIZE, SIZE)
    assert hits == [False, False, True, True]
    hits.clear()
    return layer


def tokens(dtype=torch.float32):
    return torch.randn(2, SIZE**2, 64, dtype=dtype)


def assert_right(layer, x=None):
    x = tokens() if x is None else x
    actual = layer(x, SIZE, SIZE)
    with use_backend("reference"):
        expected = layer(x, SIZE, SIZE)
    assert actual.dtype == expected.dtype
    assert actual.requires_grad == expected.requires_grad
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
    return actual


def test_a_call_is_found_again(layer, hits):
    assert_right(layer)
    assert hits[0]


def test_another_layer_of_the_same_form_is_the_same_call(layer, hits):
    assert_right(SRAttention(64, 2, qkv_bias=True, sr_ratio=4))
    assert hits[0]


@pytest.mark.parametrize("name", ["q", "kv", "proj", "sr", "norm"])
def test_new_parameters_of_the_same_form_count(layer, hits, name):
    part = getattr(layer, name)
    part.weight = nn.Parameter(torch.randn_like(part.weight) * 0.1)
    part.bias = nn.Parameter(torch.randn_like(part.bias))
    assert_right(layer)
    assert hits[0]


def transpose(layer):
    layer.q.weight.data = layer.q.weight.data.t()


def other_memory_format(layer):
    layer.sr.weight.data = layer.sr.weight.data.to(memory_format=torch.channels_last)


def no_bias(layer):
    layer.q.bias = None


def only_the_norm_frozen(layer):
    layer.norm.requires_grad_(False)


def frozen(layer):
    layer.requires_grad_(False)


def more_heads(layer):
    layer.num_heads = 4


def scale(layer):
    layer.scale = 0.5


def eps(layer):
    layer.norm.eps = 1.0


def dilation(layer):
    layer.sr.dilation, layer.sr.padding = (2, 2), (1, 1)


def stride(layer):
    layer.sr.stride = (2, 2)


def another_forward(layer):
    layer.q.forward = lambda x: x * 2


def another_part(layer):
    layer.q = nn.Sequential(layer.q, nn.Tanh())


def another_kind(layer):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer.q.__class__ = Doubled


def no_norm(layer):
    layer.norm = nn.Identity()


CHANGES = (
    *(transpose, other_memory_format, no_bias, only_the_norm_frozen, frozen, more_heads, scale),
    *(eps, dilation, stride, another_forward, another_part, another_kind, no_norm),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_layer_that_was_changed_is_another_call(layer, hits, change):
    change(layer)
    assert_right(layer)
    assert not any(hits)


def test_parameters_that_lost_their_gradients_get_none(layer):
    layer.norm.requires_grad_(False)
    layer(tokens(), SIZE, SIZE).sum().backward()
    assert layer.norm.weight.grad is None
    assert layer.sr.weight.grad is not None


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("name", ["q", "kv", "proj", "sr", "norm"])
def test_a_hook_is_heard(layer, name, register):
    heard = []
    handle = getattr(getattr(layer, name), register)(lambda *_: heard.append(name))
    layer(tokens(), SIZE, SIZE).sum().backward()
    assert heard == [name]
    handle.remove()
    layer(tokens(), SIZE, SIZE)
    assert heard == [name]


def test_a_kinds_forward_that_was_replaced_is_called(layer, monkeypatch):
    called = []
    own = nn.Linear.forward

    def forward(self, x):
        called.append(self)
        return own(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    layer(tokens(), SIZE, SIZE)
    assert called == [layer.q, layer.kv, layer.proj]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_dtype_that_was_cast(layer, hits, dtype):
    layer.to(dtype)
    assert_right(layer, tokens(dtype))
    assert not hits[0]
    with pytest.raises(TypeError, match="x"):
        layer(tokens(), SIZE, SIZE)


def test_autocast(layer, hits):
    with torch.autocast("cpu", torch.bfloat16):
        assert assert_right(layer).dtype == torch.bfloat16
    assert not any(hits)
    hits.clear()
    assert assert_right(layer).dtype == torch.float32
    assert hits[0]


def test_gradients_are_recorded_where_they_are_on(layer):
    with torch.no_grad():
        assert not layer(tokens(), SIZE, SIZE).requires_grad
    assert layer(tokens(), SIZE, SIZE).requires_grad
    with torch.inference_mode():
        assert layer(tokens(), SIZE, SIZE).is_inference()
    assert layer(tokens(), SIZE, SIZE).requires_grad
    layer.requires_grad_(False)
    x = tokens().requires_grad_()
    layer(x, SIZE, SIZE).sum().backward()
    assert x.grad is not None


def test_another_backend(layer, hits):
    with use_backend("sdpa"):
        assert_right(layer)
    with pytest.raises(RuntimeError, match="forced backend"), use_backend("cuda"):
        layer(tokens(), SIZE, SIZE)
    assert not any(hits)


def test_the_environments_backend(layer, hits, monkeypatch):
    monkeypatch.setenv("PVT_KERNELS_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="forced backend"):
        layer(tokens(), SIZE, SIZE)
    monkeypatch.delenv("PVT_KERNELS_BACKEND")
    assert_right(layer)
    assert hits[:2] == [False, True]


def test_sizes_that_do_not_fit(layer):
    for x, H, W in ((tokens(), 8, 9), (tokens()[..., :32], 8, 8), (tokens()[0], 8, 8)):
        with pytest.raises(ValueError, match="SRAttention"):
            layer(x, H, W)
    with pytest.raises((TypeError, ValueError)):
        layer(tokens(), 8.0, 8.0)


def test_strides_of_the_tokens(layer, hits):
    assert_right(layer, tokens().transpose(0, 1).contiguous().transpose(0, 1))
    assert not hits[0]


def test_a_subclass_of_tensors_hears_of_the_call(layer, hits):
    class Listening(torch.Tensor):
        heard = False

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.heard = True
            return super().__torch_function__(function, types, args, kwargs or {})

    layer(tokens().as_subclass(Listening), SIZE, SIZE)
    assert Listening.heard
    assert not any(hits)


def test_a_mode_hears_of_the_call(layer, hits):
    with ListeningMode() as mode:
        layer(tokens(), SIZE, SIZE)
    assert mode.heard > 0
    assert not any(hits)


def test_transforms(layer, hits):
    x, tangent = tokens(), tokens()
    batched = torch.func.vmap(lambda x: layer(x, SIZE, SIZE))(torch.stack((x, tangent)))
    torch.testing.assert_close(batched[0], layer(x, SIZE, SIZE), rtol=1e-3, atol=1e-4)
    hits.clear()
    _, derivative = torch.func.jvp(lambda x: layer(x, SIZE, SIZE), (x,), (tangent,))
    assert derivative.abs().max() > 0
    assert not any(hits)


def test_a_parameter_that_is_there_twice(layer, hits):
    layer.sr.bias = layer.norm.bias
    for _ in range(2):
        assert_right(layer)
    assert not any(hits)


def test_a_key_keeps_few_forms(layer):
    for step in range(2, 2 + 2 * repeated.FORMS):
        x = torch.randn(2, SIZE**2, 64 * step)[..., ::step]
        layer(x, SIZE, SIZE)
    kept = [*repeated._kept._newer.values()]
    assert max(map(len, kept)) == repeated.FORMS
    assert_right(layer)


def test_a_layer_is_copied_and_stored_as_before(layer):
    assert_right(copy.deepcopy(layer))
    assert_right(pickle.loads(pickle.dumps(layer)))
