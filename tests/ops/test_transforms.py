"""The ops and the layer under transforms of functions: torch.func and forward-mode derivatives.

No tangent is lost without a word: it is right, or an error names what is at work.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vmap

from pvt_kernels import SRAttention, attention, multi_head_attention, spatial_reduction, use_backend

B, H, W, C, HEADS, R = 2, 4, 5, 16, 2, 2


def attention_of_queries():
    k, v = torch.randn(2, B, 3, HEADS, 8)
    return lambda x, k, v: attention(x, k, v), torch.randn(B, 4, HEADS, 8), (k, v)


def whole_attention():
    shapes = (C, C), (C,), (2 * C, C), (2 * C,), (C, C), (C,)
    others = [torch.randn(B, 3, C), *(0.3 * torch.randn(shape) for shape in shapes)]
    return (
        lambda x, *others: multi_head_attention(x, *others, HEADS),
        torch.randn(B, H * W, C),
        others,
    )


def reduction():
    shapes = (C, C, R, R), (C,), (C,), (C,)
    others = [0.3 * torch.randn(shape) for shape in shapes]
    return (
        lambda x, *others: spatial_reduction(x, H, W, *others),
        torch.randn(B, H * W, C),
        others,
    )


def layer(**arguments):
    module = SRAttention(C, HEADS, qkv_bias=True, **arguments)
    names = [name for name, _ in module.named_parameters()]
    parameters = [torch.randn_like(p) * 0.3 for p in module.parameters()]

    def fn(x, *parameters):
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x, H, W))

    return fn, torch.randn(B, H * W, C), parameters


CASES = {
    "attention": attention_of_queries,
    "multi_head_attention": whole_attention,
    "spatial_reduction": reduction,
    "layer": lambda: layer(sr_ratio=R),
    "linear_layer": lambda: layer(linear=True),
}


@pytest.fixture(params=CASES)
def case(request):
    fn, x, others = CASES[request.param]()
    return fn, (x, *others), tuple(torch.randn_like(t) for t in (x, *others))


def double(tensors):
    return tuple(t.double() for t in tensors)


def by_differences(fn, inputs, tangents, step=1e-6):
    inputs, tangents = double(inputs), double(tangents)
    ahead, behind = (
        fn(*(t + sign * step * d for t, d in zip(inputs, tangents, strict=True)))
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * step)


def by_dual_numbers(fn, inputs, tangents):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(inputs, tangents, strict=True)]
        return forward_ad.unpack_dual(fn(*duals)).tangent


def by_linearize(fn, inputs, tangents):
    return linearize(fn, *inputs)[1](*tangents)


WAYS = {
    "jvp": lambda fn, inputs, tangents: jvp(fn, inputs, tangents)[1],
    "dual": by_dual_numbers,
    "linearize": by_linearize,
    "jvp_with_gradients": lambda fn, inputs, tangents: jvp(
        fn, tuple(t.clone().requires_grad_() for t in inputs), tangents
    )[1],
    "compiled_jvp": lambda fn, inputs, tangents: torch.compile(
        lambda *both: jvp(fn, both[: len(inputs)], both[len(inputs) :])[1], backend="eager"
    )(*inputs, *tangents),
}


@pytest.mark.parametrize("way", WAYS)
def test_tangents(case, way):
    torch.compiler.reset()
    expected = by_differences(*case)
    actual = WAYS[way](*case)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0.1


def test_a_tangent_of_one_input_alone(case):
    fn, inputs, tangents = case
    for i in range(len(inputs)):
        one = tuple(d if i == j else torch.zeros_like(d) for j, d in enumerate(tangents))
        expected = by_differences(fn, inputs, one)

        def of_one(t, i=i):
            return fn(*inputs[:i], t, *inputs[i + 1 :])

        actual = jvp(of_one, (inputs[i],), (tangents[i],))[1]
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def test_jacobians_and_hessians(case):
    fn, inputs, _ = case
    x, *others = double(inputs)

    def small(x):
        return fn(x, *others).flatten()[:: 7 * C].sin()

    forward = jacfwd(small)(x)
    torch.testing.assert_close(jacrev(small)(x), forward)
    assert forward.abs().max() > 0.01
    direction = torch.randn_like(x)
    step = 1e-6 * direction

    def slope(x):
        return torch.autograd.functional.vjp(lambda x: small(x).sum(), x)[1]

    product = hessian(lambda x: small(x).sum())(x).flatten(x.dim()) @ direction.flatten()
    expected = (slope(x + step) - slope(x - step)) / 2e-6
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-6)


def test_gradients_also_of_samples(case):
    fn, inputs, _ = case

    def loss(*tensors):
        return fn(*tensors).square().sum()

    leaves = [t.clone().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    every = tuple(range(len(inputs)))
    torch.testing.assert_close(grad(loss, every)(*inputs), expected, rtol=1e-4, atol=1e-4)

    several = torch.stack((inputs[0], inputs[0].flip(0)))
    along = (0, *(None for _ in inputs[1:]))
    actual = vmap(grad(loss), in_dims=along)(several, *inputs[1:])
    for one, x in zip(actual, several, strict=True):
        torch.testing.assert_close(one, grad(loss)(x, *inputs[1:]), rtol=1e-4, atol=1e-4)
        x = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(x, *inputs[1:]), x)
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)


def test_second_derivatives_by_create_graph_are_refused_by_kernels(case):
    fn, inputs, _ = case
    x = inputs[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(fn(x, *inputs[1:]).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*torch\.func"):
        first.square().sum().backward()


def test_a_forced_backend_with_kernels_says_that_it_cannot(case):
    fn, inputs, tangents = case
    with use_backend("cpu"):
        with pytest.raises(RuntimeError, match=r"forward-mode differentiation \(jvp\) is active"):
            jvp(fn, inputs, tangents)
        with pytest.raises(RuntimeError, match=r"a transform of torch\.func is active"):
            grad(lambda *tensors: fn(*tensors).sum())(*inputs)


def test_operators_that_are_called_by_themselves_lose_no_tangent():
    q, k, v = torch.randn(3, B, 4, HEADS, 8)
    forward = torch.ops.pvt_kernels.attention_forward

    def fn(q):
        return forward(q, k, v, 1.0, "cpu")[0]

    with pytest.raises(RuntimeError, match=r"attention_forward.* forward-mode differentiation"):
        jvp(fn, (q,), (q,))
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match=r"attention_forward.* forward-mode differentiation"),
    ):
        fn(forward_ad.make_dual(q, q))
    with pytest.raises(RuntimeError, match=r"attention_forward.* a transform of torch\.func"):
        grad(lambda q: fn(q).sum())(q)


def test_what_was_computed_outside_of_a_level_still_has_its_backward():
    q, k, v = torch.randn(3, B, 4, HEADS, 8)
    q.requires_grad_()
    (expected,) = torch.autograd.grad(attention(q, k, v).sum(), q)
    out = attention(q, k, v)
    with forward_ad.dual_level():
        (actual,) = torch.autograd.grad(out.sum(), q)
    assert torch.equal(actual, expected)


def test_dropout_under_a_transform():
    module = SRAttention(C, HEADS, attn_drop=0.5)
    x = torch.randn(3, 1, H * W, C)
    out = vmap(lambda x: module(x, H, W), randomness="different")(x[:1].expand(3, -1, -1, -1))
    assert not torch.equal(out[0], out[1])
    expected = vmap(lambda x: module.eval()(x, H, W))(x)
    torch.testing.assert_close(expected, torch.stack([module(one, H, W) for one in x]))


def test_a_layer_that_is_replaced_by_another_has_its_tangent_too():
    module = SRAttention(C, HEADS, sr_ratio=R)
    module.q = nn.Sequential(module.q, nn.Tanh())
    x, t = torch.randn(2, B, H * W, C)
    exact = copy.deepcopy(module).double()
    expected = by_differences(lambda x: exact(x, H, W), (x,), (t,))
    actual = jvp(lambda x: module(x, H, W), (x,), (t,))[1]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
