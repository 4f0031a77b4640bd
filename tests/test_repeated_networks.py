"""A feed-forward network that was called before: nothing that has changed goes unnoticed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pvt_kernels import use_backend
from pvt_kernels.models.blocks import ConvMlp, Mlp

from .listening import HOOKS, ListeningMode

H, W, C, D = 6, 7, 16, 64


@pytest.fixture(params=[True, False], ids=["conv", "plain"])
def network(request, hits):
    """Called twice, so that the next call of its form is found again."""
    network = ConvMlp(C, D, 0.0, relu=True) if request.param else Mlp(C, D, 0.0)
    for _ in range(2):
        network(tokens(), H, W)
        with torch.no_grad():
            network(tokens(), H, W)
    assert hits == [False, False, True, True]
    hits.clear()
    return network


def tokens(dtype=torch.float32):
    return torch.randn(2, H * W, C, dtype=dtype)


def results(network, x):
    """The output, and all gradients."""
    x = x.detach().requires_grad_()
    network.zero_grad()
    out = network(x, H, W)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in network.parameters())]


def assert_right(network, x=None):
    x = tokens() if x is None else x
    with use_backend("reference"):
        expected = results(network, x)
    for a, e in zip(results(network, x), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)


def test_a_call_is_found_again_with_right_gradients(network, hits):
    network(tokens().requires_grad_(), H, W)
    hits.clear()
    assert_right(network)
    assert hits[-1]


def test_another_network_of_the_same_form_is_the_same_call(network, hits):
    network(tokens().requires_grad_(), H, W)
    hits.clear()
    assert_right(copy.deepcopy(network))
    assert_right(pickle.loads(pickle.dumps(network)))
    assert hits[1] and hits[3]


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_new_parameters_of_the_same_form_count(network, hits, name):
    part = getattr(network, name)
    part.weight = nn.Parameter(torch.randn_like(part.weight) * 0.1)
    part.bias = nn.Parameter(torch.randn_like(part.bias))
    with torch.no_grad():
        actual = network(tokens(), H, W)
    assert hits[0]
    assert actual.shape == (2, H * W, C)
    assert_right(network)


def no_bias(network):
    network.fc1.bias = None


def transposed(network):
    network.fc1.weight.data = torch.randn(C, D).t()


def another_activation(network):
    network.act = nn.ReLU()


def another_approximation(network):
    network.act = nn.GELU("tanh")


def another_part(network):
    network.fc1 = nn.Sequential(network.fc1, nn.Tanh())


def another_forward(network):
    network.fc2.forward = lambda x: 2 * nn.functional.linear(x, network.fc2.weight)


def an_activations_forward(network):
    network.act.forward = lambda x: 2 * x


def another_kind(network):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network.fc1.__class__ = Doubled


CHANGES = (
    *(no_bias, transposed, another_activation, another_approximation, another_part),
    *(another_forward, an_activations_forward, another_kind),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_network_that_was_changed_is_another_call(network, hits, change):
    change(network)
    with torch.no_grad():
        network(tokens(), H, W)
    assert not any(hits)
    assert_right(network)


def no_relu(network):
    network.relu = nn.Identity()


def dilation(network):
    network.dwconv.dwconv.dilation, network.dwconv.dwconv.padding = (2, 2), (2, 2)


def padding_mode(network):
    network.dwconv.dwconv.padding_mode = "circular"
    network.dwconv.dwconv._reversed_padding_repeated_twice = [1] * 4


def another_container(network):
    inner = network.dwconv.forward
    network.dwconv.forward = lambda x, H, W: x + inner(x, H, W)


def grouped(network):
    network.dwconv.dwconv = nn.Conv2d(D, D, 3, padding=1)


@pytest.mark.parametrize(
    "change",
    [no_relu, dilation, padding_mode, another_container, grouped],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("network", [True], indirect=True)
def test_a_convolution_that_was_changed_is_another_call(network, hits, change):
    change(network)
    with torch.no_grad():
        network(tokens(), H, W)
    assert not any(hits)
    assert_right(network)


@pytest.mark.parametrize("network", [True], indirect=True)
def test_the_maps_size_counts(network, hits):
    x = tokens()
    assert not torch.allclose(network(x, H, W), network(x, W, H))
    with pytest.raises(ValueError, match="feed_forward: x must have N"):
        network(x, H, W + 1)
    assert hits == [True, False, False]


def test_dropout_that_is_put_on(network, hits):
    network.drop.p = 0.5
    torch.manual_seed(0)
    actual = network(tokens(), H, W)
    assert not hits
    assert (actual == 0).float().mean() > 0.3
    network.eval()
    with torch.no_grad():
        network(tokens(), H, W)
    assert hits == [True]


def test_parameters_that_lost_their_gradients_get_none(network):
    network.fc1.requires_grad_(False)
    network(tokens(), H, W).sum().backward()
    assert network.fc1.weight.grad is None
    assert network.fc2.weight.grad is not None


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("name", ["fc1", "act", "fc2"])
def test_a_hook_is_heard(network, name, register):
    heard = []
    handle = getattr(getattr(network, name), register)(lambda *_: heard.append(name))
    network(tokens(), H, W).sum().backward()
    assert heard == [name]
    handle.remove()
    network(tokens(), H, W)
    assert heard == [name]


def test_a_kinds_forward_that_was_replaced_is_called(network, monkeypatch):
    called = []
    own = nn.Linear.forward

    def forward(self, x):
        called.append(self)
        return own(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    network(tokens(), H, W)
    assert called == [network.fc1, network.fc2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_dtype_that_was_cast(network, hits, dtype):
    network.to(dtype)
    assert network(tokens(dtype), H, W).dtype == dtype
    assert not hits[0]
    with pytest.raises(RuntimeError, match="dtype"):
        network(tokens(), H, W)


def test_autocast(network, hits):
    with torch.autocast("cpu", torch.bfloat16):
        assert network(tokens(), H, W).dtype == torch.bfloat16
    assert not any(hits)
    hits.clear()
    out = network(tokens(), H, W)
    assert out.dtype == torch.float32
    assert hits[0]
    # a backward under autocast computes in the forward's dtype
    with torch.autocast("cpu", torch.bfloat16):
        out.sum().backward()
    assert network.fc1.weight.grad.dtype == torch.float32


def test_gradients_are_recorded_where_they_are_on(network):
    with torch.no_grad():
        assert not network(tokens(), H, W).requires_grad
    assert network(tokens(), H, W).requires_grad
    with torch.inference_mode():
        assert network(tokens(), H, W).is_inference()
    assert network(tokens(), H, W).requires_grad
    network.requires_grad_(False)
    x = tokens().requires_grad_()
    network(x, H, W).sum().backward()
    assert x.grad is not None


def test_a_second_derivative_is_refused(network):
    x = tokens().requires_grad_()
    for _ in range(2):
        (dx,) = torch.autograd.grad(network(x, H, W).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="derivative"):
            dx.sum().backward()


def test_another_backend(network, hits):
    with use_backend("sdpa"):
        for _ in range(2):
            assert_right(network)
    assert hits[-1]
    with pytest.raises(RuntimeError, match="forced backend"), use_backend("cuda"):
        network(tokens(), H, W)


def test_strides_of_the_tokens(network, hits):
    x = tokens().transpose(0, 1).contiguous().transpose(0, 1)
    with torch.no_grad():
        network(x, H, W)
    assert not hits[0]
    assert_right(network, x)


def test_a_mode_hears_of_the_call(network, hits):
    with ListeningMode() as mode:
        network(tokens(), H, W)
    assert mode.heard > 0
    assert not any(hits)


def test_transforms(network, hits):
    x, tangent = tokens(), tokens()
    batched = torch.func.vmap(lambda x: network(x, H, W))(torch.stack((x, tangent)))
    torch.testing.assert_close(batched[0], network(x, H, W), rtol=1e-3, atol=1e-4)
    hits.clear()
    _, derivative = torch.func.jvp(lambda x: network(x, H, W), (x,), (tangent,))
    assert derivative.abs().max() > 0
    assert not any(hits)


def test_an_input_that_is_written_to_before_the_backward_raises(network):
    x = tokens().requires_grad_() * 1
    out = network(x, H, W)
    x.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()
