"""SRAttention as a drop-in for the Attention of PVT and PVTv2."""

import copy
import pickle
from functools import lru_cache

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pvt_kernels import SRAttention, use_backend

from .error_budget import Budget, check, samples_for_a_ratio
from .ops.cases import BACKEND_PARAMS, budget_cases, trials
from .published import sra

# name: constructor arguments, H, W, N: reduced, with rows and columns left over, not reduced with
# a class token, linear, linear on a map below its pool
CONFIGURATIONS = {
    "stage1": ({"dim": 64, "num_heads": 1, "qkv_bias": True, "sr_ratio": 8}, 16, 24, 384),
    "odd": ({"dim": 64, "num_heads": 2, "qkv_bias": True, "sr_ratio": 4}, 9, 14, 126),
    "class_token": ({"dim": 64, "num_heads": 8, "qkv_bias": True}, 5, 7, 36),
    "no_bias": ({"dim": 40, "num_heads": 5, "qk_scale": 0.2, "sr_ratio": 2}, 6, 5, 30),
    "linear": ({"dim": 32, "num_heads": 1, "qkv_bias": True, "linear": True}, 14, 9, 126),
    "small_linear": ({"dim": 32, "num_heads": 2, "sr_ratio": 2, "linear": True}, 3, 4, 12),
}

# every configuration on one backend, every backend in one configuration; the others are nightly
COMBINATIONS = [
    pytest.param(
        name,
        backend,
        marks=() if backend == "cpu" or name == "odd" else pytest.mark.nightly,
    )
    for name in CONFIGURATIONS
    for backend in BACKEND_PARAMS
]


def make(name, dtype=torch.float32, **changes):
    """A layer with random biases and norms, so that none can be left out unseen, and its map."""
    arguments, H, W, N = CONFIGURATIONS[name]
    layer = SRAttention(**(arguments | changes))
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return layer.to(dtype), H, W, N


def functional(forward, layer, H, W):
    """`forward(layer, x, H, W)` as a function of x and the layer's parameters."""
    names = [name for name, _ in layer.named_parameters()]

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return forward(self.layer, x, H, W)

    module = Wrapped()

    def fn(x, *parameters):
        values = {f"layer.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(module, values, (x,))

    return fn, ["out", "dx", *(f"d{name}" for name in names)]


@pytest.mark.parametrize(("name", "dtype", "backend"), budget_cases(CONFIGURATIONS))
def test_error_budget_against_the_published_formula(name, dtype, backend):
    layer, H, W, budget = layer_and_budget(name, dtype)

    def forward(layer, x, H, W):
        with use_backend(backend):
            return layer(x, H, W)

    actual, _ = functional(forward, layer, H, W)
    check(budget, actual, trials(backend, budget))


# one backend after the other is checked on the same samples
@lru_cache(maxsize=1)
def layer_and_budget(name, dtype):
    layer, H, W, N = make(name, dtype)
    definition, names = functional(sra, layer, H, W)
    parameters = [p.detach() for p in layer.parameters()]
    samples = [
        ((torch.randn(2, N, layer.dim).to(dtype), *parameters), torch.randn(2, N, layer.dim))
        for _ in range(samples_for_a_ratio(rows=2 * N, least=16))
    ]
    return layer, H, W, Budget.of(definition, samples, names)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_fp64_equals_the_published_formula(name):
    layer, H, W, N = make(name, torch.float64)
    x = torch.randn(2, N, layer.dim, dtype=torch.float64)
    for backend in ("sdpa", "reference"):
        with use_backend(backend):
            torch.testing.assert_close(layer(x, H, W), sra(layer, x, H, W), rtol=0, atol=1e-12)


def test_parameters_have_the_original_names_and_shapes():
    shapes = {n: tuple(p.shape) for n, p in SRAttention(64, 2, True, sr_ratio=4).named_parameters()}
    assert shapes == {
        "q.weight": (64, 64),
        "q.bias": (64,),
        "kv.weight": (128, 64),
        "kv.bias": (128,),
        "proj.weight": (64, 64),
        "proj.bias": (64,),
        "sr.weight": (64, 64, 4, 4),
        "sr.bias": (64,),
        "norm.weight": (64,),
        "norm.bias": (64,),
    }
    assert list(SRAttention(64).state_dict()) == [
        "q.weight",
        "kv.weight",
        "proj.weight",
        "proj.bias",
    ]
    linear = SRAttention(64, 2, sr_ratio=4, linear=True).state_dict()
    assert linear["sr.weight"].shape == (64, 64, 1, 1)


def test_positional_arguments_are_in_the_original_order():
    layer = SRAttention(64, 2, True, 0.3, 0.1, 0.2, 4, True)
    assert layer.num_heads == 2
    assert layer.q.bias is not None
    assert layer.scale == 0.3
    assert layer.attn_drop.p == 0.1
    assert layer.proj_drop.p == 0.2
    assert layer.sr_ratio == 4
    assert layer.linear


@pytest.mark.parametrize("name", ["odd", "linear"])
def test_timm_attention_has_the_same_output(name):
    timm_pvt_v2 = pytest.importorskip("timm.models.pvt_v2", reason="timm is not installed")
    layer, H, W, N = make(name)
    theirs = timm_pvt_v2.Attention(
        layer.dim,
        num_heads=layer.num_heads,
        sr_ratio=layer.sr_ratio,
        linear_attn=layer.linear,
        qkv_bias=layer.q.bias is not None,
    )
    theirs.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(2, N, layer.dim)
    torch.testing.assert_close(layer(x, H, W), theirs(x, (H, W)))


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("name", ["odd", "class_token", "linear"])
@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_batches_of_none_and_one(backend, name, batch):
    layer, H, W, N = make(name)
    x = torch.randn(2, N, layer.dim)[:batch].requires_grad_()
    with use_backend(backend):
        out = layer(x, H, W)
    out.sum().backward()
    assert out.shape == x.grad.shape == (batch, N, layer.dim)
    torch.testing.assert_close(out, sra(layer, x, H, W))
    if batch == 0:
        assert all((p.grad == 0).all() for p in layer.parameters())


@pytest.mark.parametrize("name", ["odd", "class_token", "linear"])
@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_tokens_born_channels_first_and_channels_last(backend, name):
    layer, H, W, N = make(name)
    image = torch.randn(2, layer.dim, N)
    expected = layer(image.transpose(1, 2).contiguous(), H, W)
    doubled = torch.randn(2, 2 * N, 2 * layer.dim)
    doubled[:, ::2, ::2] = image.transpose(1, 2)
    with use_backend(backend):
        torch.testing.assert_close(layer(image.transpose(1, 2), H, W), expected)
        torch.testing.assert_close(layer(doubled[:, ::2, ::2], H, W), expected)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_tokens_beside_others_at_any_address(backend):
    """A copy has other strides than they have, and none is needed where they are aligned."""
    layer, H, W, N = make("odd")
    beside = torch.randn(2, N, layer.dim + 8)
    for first in (0, 1, 8):
        tokens = beside[..., first : first + layer.dim]
        results = []
        for x, name in ((tokens, backend), (tokens.contiguous(), "reference")):
            x = x.detach().requires_grad_()
            with use_backend(name):
                out = layer(x, H, W)
            results.append((out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])))
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_channels_last_convolution_output():
    layer, H, W, _ = make("odd")
    conv = nn.Conv2d(3, layer.dim, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, H, W).to(memory_format=torch.channels_last)
    tokens = conv(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(tokens, H, W), sra(layer, tokens.contiguous(), H, W))


@pytest.mark.parametrize(("name", "backend"), COMBINATIONS)
def test_autocast(name, backend):
    layer, H, W, N = make(name)
    x = torch.randn(2, N, layer.dim, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with use_backend(backend):
            out = layer(x, H, W)
        expected = sra(layer, x, H, W)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
    out.float().pow(2).sum().backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters()
    )
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize(("name", "backend"), COMBINATIONS)
def test_compiles_without_graph_breaks(name, backend):
    torch.compiler.reset()
    layer, H, W, N = make(name)
    x = torch.randn(2, N, layer.dim)
    expected = torch.autograd.grad(layer(x, H, W).sum(), list(layer.parameters()))
    with use_backend(backend):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        out = compiled(x, H, W)
    torch.testing.assert_close(out, layer(x, H, W))
    actual = torch.autograd.grad(out.sum(), list(layer.parameters()))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_compiles_once_for_many_sizes(backend):
    torch.compiler.reset()
    layer, *_ = make("odd")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    with use_backend(backend):
        for H, W in ((9, 14), (8, 20), (13, 10), (31, 30)):
            x = torch.randn(2, H * W, layer.dim)
            torch.testing.assert_close(compiled(x, H, W), layer(x, H, W))
            graphs.append(counter.frame_count)
    assert graphs[0] > 0
    assert len(set(graphs)) == 1


def test_compiled_code_follows_use_backend():
    torch.compiler.reset()
    layer, H, W, N = make("odd")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(1, N, layer.dim)
    for backend in ("reference", "sdpa", "reference"):
        with use_backend(backend):
            compiled(x, H, W)
    operators = ["pvt_kernels.attention_forward" in str(g.graph) for g in counter.graphs]
    assert operators == [True, False]


def test_compiles_under_autocast():
    torch.compiler.reset()
    layer, H, W, N = make("odd")
    x = torch.randn(1, N, layer.dim)
    with torch.autocast("cpu", dtype=torch.bfloat16), use_backend("reference"):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x, H, W)
        torch.testing.assert_close(compiled, layer(x, H, W))


@pytest.mark.parametrize("backend", BACKEND_PARAMS)
def test_gradient_checkpointing(backend):
    layer, H, W, N = make("odd", proj_drop=0.5)
    x = torch.randn(2, N, layer.dim, requires_grad=True)
    wanted = [x, *layer.parameters()]
    with use_backend(backend):
        torch.manual_seed(1)
        expected = torch.autograd.grad(layer(x, H, W).sum(), wanted)
        torch.manual_seed(1)
        out = checkpoint(layer, x, H, W, use_reentrant=False)
        actual = torch.autograd.grad(out.sum(), wanted)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_deepcopy_and_pickle(duplicate):
    layer, H, W, N = make("linear")
    x = torch.randn(2, N, layer.dim)
    other = duplicate(layer)
    assert torch.equal(other(x, H, W), layer(x, H, W))
    with torch.no_grad():
        other.proj.bias.add_(1)
    assert not torch.equal(other(x, H, W), layer(x, H, W))


def test_dropout_in_training_and_not_in_evaluation():
    layer, H, W, N = make("odd", attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(2, N, layer.dim)
    assert not torch.equal(layer(x, H, W), layer(x, H, W))
    # one of two outputs is dropped
    assert 0.4 < (layer(x, H, W) == 0).float().mean() < 0.6
    layer.eval()
    torch.testing.assert_close(layer(x, H, W), sra(layer, x, H, W))


@pytest.mark.parametrize("name", ["q", "kv", "proj"])
def test_hooks_and_replaced_layers_are_honoured(name):
    layer, x = SRAttention(32, 2, sr_ratio=2), torch.randn(1, 48, 32)
    expected = layer(x, 6, 8)
    seen = []
    getattr(layer, name).register_forward_hook(lambda *args: seen.append(args))
    torch.testing.assert_close(layer(x, 6, 8), expected)
    assert len(seen) == 1

    layer = copy.deepcopy(layer)
    setattr(layer, name, nn.Sequential(getattr(layer, name), nn.ReLU()))
    assert not torch.allclose(layer(x, 6, 8), expected)


def test_frozen_parameters_get_no_gradient():
    layer, H, W, N = make("odd")
    layer.sr.requires_grad_(False)
    layer.kv.requires_grad_(False)
    with use_backend("reference"):
        layer(torch.randn(2, N, layer.dim), H, W).sum().backward()
    assert layer.sr.weight.grad is None
    assert layer.kv.weight.grad is None
    assert layer.norm.weight.grad is not None
    assert layer.q.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"dim": 64, "num_heads": 3},
            ValueError,
            "dim must be divisible by num_heads, got 64 and 3",
        ),
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 64, "num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"dim": 64.0}, TypeError, r"dim must be an int, got 64\.0"),
        ({"dim": 64, "sr_ratio": -2}, ValueError, "sr_ratio must be at least 1, got -2"),
        ({"dim": 64, "attn_drop": 1.0}, ValueError, r"attn_drop must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match=f"SRAttention: {message}"):
        SRAttention(**arguments)


@pytest.mark.parametrize(
    ("x", "H", "W", "error", "message"),
    [
        (
            torch.zeros(35, 64),
            5,
            7,
            ValueError,
            r"x must have the shape \(B, N, C\), got \(35, 64\)",
        ),
        (torch.zeros(2, 35, 32), 5, 7, ValueError, r"x must .* = \(2, 35, 64\), got \(2, 35, 32\)"),
        (torch.zeros(2, 36, 64), 5, 7, ValueError, r"x must have N = H\*W = 5\*7 = 35 .* got 36"),
        (torch.zeros(2, 35, 64).long(), 5, 7, TypeError, r"x must be .* got torch\.int64"),
        (
            torch.zeros(2, 35, 64).half(),
            5,
            7,
            TypeError,
            r"x must have the layer's .* torch\.float16",
        ),
        (torch.zeros(2, 35, 64, device="meta"), 5, 7, ValueError, "x must be on .* cpu, got meta"),
        (torch.zeros(2, 35, 64), -5, -7, ValueError, "H must be at least 4, got -5"),
        (torch.zeros(2, 21, 64), 7, 3, ValueError, "W must be at least 4, got 3"),
        ("x", 5, 7, TypeError, "x must be a tensor .* got str"),
    ],
)
def test_bad_input(x, H, W, error, message):
    layer = SRAttention(64, 2, sr_ratio=4)
    with pytest.raises(error, match=f"SRAttention: {message}"):
        layer(x, H, W)
