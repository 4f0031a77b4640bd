"""Random models with random parts replaced: patched, they compute what they did.

Each case draws a family and up to four changes, before or after patch(), of any of its layers. The
outputs and gradients of the patched model keep the error budget against the model before, in fp64
where its parts have that; what patch() leaves alone it says, and unpatching restores the bits.
"""

from __future__ import annotations

import random
import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import pvt_kernels
from pvt_kernels.integrations.classes import is_patched
from pvt_kernels.layers import SRAttention
from pvt_kernels.models.pvt import PyramidVisionTransformer
from pvt_kernels.models.pvt_v2 import PyramidVisionTransformerV2
from pvt_kernels.models.pyramid import Config

from ..integrations.checks import output, with_lively_weights
from ..integrations.doubles import PvtAttention
from ..integrations.subclasses import Int8Tensor
from .cases import fuzzed

timm = pytest.importorskip("timm", reason="timm is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

DEPTHS, DIMS = (1, 1, 1, 1), (16, 32, 40, 64)
HEADS, SR = (1, 2, 5, 8), (8, 4, 2, 1)
HF = {"depths": list(DEPTHS), "hidden_sizes": list(DIMS), "num_labels": 5}
# times the rounding of one layer, over the layers of the whole model, to and fro
ROUNDINGS = 200


def segformer():
    # a dropout draws in the order of its input's strides, which are not promised
    config = transformers.SegformerConfig(**HF, decoder_hidden_size=24, classifier_dropout_prob=0)
    return transformers.SegformerForSemanticSegmentation(config)


def timm_pvt_v2(linear=False):
    from timm.models.pvt_v2 import PyramidVisionTransformerV2 as Model

    return Model(
        depths=DEPTHS, embed_dims=DIMS, num_heads=HEADS, sr_ratios=SR, linear=linear, num_classes=5
    )


def twins():
    from timm.models.twins import Twins

    return Twins(
        img_size=64, embed_dims=DIMS, num_heads=HEADS, mlp_ratios=(2, 2, 2, 2), depths=(2, 1, 2, 1),
        sr_ratios=SR, wss=(4, 4, 4, 4), num_classes=5,
    )  # fmt: skip


def own(kind, **arguments):
    return kind(Config(DIMS, DEPTHS, HEADS, mlp_ratios=(2, 2, 2, 2), **arguments), num_classes=5)


FAMILIES = {
    "timm_pvt_v2": timm_pvt_v2,
    "timm_pvt_v2_linear": lambda: timm_pvt_v2(linear=True),
    "timm_twins": twins,
    "segformer": segformer,
    "pvt": lambda: transformers.PvtModel(transformers.PvtConfig(image_size=64, **HF)),
    "pvt_v2": lambda: transformers.PvtV2Model(
        transformers.PvtV2Config(linear_attention=random.random() < 0.5, **HF)
    ),
    "glpn": lambda: transformers.GLPNForDepthEstimation(
        transformers.GLPNConfig(**HF, decoder_hidden_size=24)
    ),
    "own_pvt": lambda: own(PyramidVisionTransformer),
    "own_pvt_v2": lambda: own(PyramidVisionTransformerV2),
    "own_pvt_v2_linear": lambda: own(PyramidVisionTransformerV2, linear=True),
}


class Lora(nn.Linear):
    """A Linear by its class, with a product of low rank beside its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Adapted(nn.Module):
    """Another module around one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs) * 1.5


def lora(parent: nn.Module, name: str) -> None:
    layer = getattr(parent, name)
    if type(layer) is nn.Linear:
        layer.__class__ = Lora
        layer.down = nn.Parameter(torch.randn(2, layer.in_features) * layer.in_features**-0.5)
        layer.up = nn.Parameter(torch.randn(layer.out_features, 2))


def wrapped(parent: nn.Module, name: str) -> None:
    setattr(parent, name, Adapted(getattr(parent, name)))


def hooked(parent: nn.Module, name: str) -> None:
    getattr(parent, name).register_forward_hook(lambda module, args, out: out * 1.5)


def hooked_before(parent: nn.Module, name: str) -> None:
    getattr(parent, name).register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))


def on_the_instance(parent: nn.Module, name: str) -> None:
    child = getattr(parent, name)
    kind = type(child)
    child.forward = Replaced(child, kind)


class Replaced:
    """In the place of a module's forward; of a copy too."""

    def __init__(self, module: nn.Module, kind: type[nn.Module]) -> None:
        self.module, self.kind = module, kind

    def __call__(self, *args, **kwargs):
        return self.kind.forward(self.module, *args, **kwargs) * 1.5


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def parametrized(parent: nn.Module, name: str) -> None:
    parametrize.register_parametrization(getattr(parent, name), "weight", Halved())


def weight_norm(parent: nn.Module, name: str) -> None:
    parametrizations.weight_norm(getattr(parent, name))


def old_weight_norm(parent: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(getattr(parent, name))


def pruned(parent: nn.Module, name: str) -> None:
    from torch.nn.utils import prune

    prune.random_unstructured(getattr(parent, name), "weight", amount=0.3)


def frozen(parent: nn.Module, name: str) -> None:
    getattr(parent, name).requires_grad_(False)


def int8(parent: nn.Module, name: str) -> None:
    layer = getattr(parent, name)
    layer.weight = nn.Parameter(Int8Tensor.quantised(layer.weight.detach()), requires_grad=False)


class InHalf(nn.Module):
    """A layer that computes in bfloat16, whatever is around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(torch.bfloat16)).to(x.dtype)


def other_dtype(parent: nn.Module, name: str) -> None:
    setattr(parent, name, InHalf(getattr(parent, name)))


def without_bias(parent: nn.Module, name: str) -> None:
    getattr(parent, name).bias = None


def tied(parent: nn.Module, name: str) -> None:
    layer = getattr(parent, name)
    for other in parent.children():
        alike = type(other) is type(layer) and other is not layer and not other._forward_pre_hooks
        if alike and other.weight.shape == layer.weight.shape:
            other.weight = layer.weight
            return


CHANGES = (
    lora, wrapped, hooked, hooked_before, on_the_instance, parametrized, weight_norm,
    old_weight_norm, pruned, frozen, int8, other_dtype, without_bias, tied,
)  # fmt: skip
# of which the rounding of one value may change a result by more than a rounding
COARSE = (other_dtype,)
LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm)


def is_an_attention(module: nn.Module) -> bool:
    return is_patched(module) or isinstance(module, (SRAttention, PvtAttention))


def places(model: nn.Module) -> list[str]:
    """Names of the layers that may change: those of the attention twice, since they are few."""
    swapped = pvt_kernels.patch(model, dry_run=True).rows
    inside = tuple(f"{row.module}." for row in swapped)
    names = [name for name, module in model.named_modules() if type(module) in LAYERS]
    return names + [name for name in names if name.startswith(inside)] * 2


def draw(rng: random.Random, names: list[str]) -> tuple[str, object]:
    return rng.choice(names), rng.choice(CHANGES)


def apply(model: nn.Module, changes: list[tuple[str, object]]) -> list[tuple[str, object]]:
    """Make the changes that fit; a layer that was changed before keeps the first."""
    made = []
    for name, change in changes:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if type(module) not in LAYERS or module._forward_hooks or module._forward_pre_hooks:
            continue
        parent, _, last = name.rpartition(".")
        weighted = change in (lora, weight_norm, old_weight_norm, int8)
        if "forward" in vars(module) or (weighted and isinstance(module, nn.LayerNorm)):
            continue
        if getattr(module, "groups", 1) > 1 and change is int8:
            continue
        change(model.get_submodule(parent), last)
        made.append((name, change))
    return made


def build(family: str, seed: int) -> nn.Module:
    random.seed(seed)
    torch.manual_seed(seed)
    return with_lively_weights(FAMILIES[family]())


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    out = output(model(x))
    if out.requires_grad:
        out.backward(torch.randn(out.shape, dtype=torch.float64).to(out.dtype))
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), **gradients}


@pytest.mark.filterwarnings("ignore:patch. .* has no spatial-reduction attention")
@pytest.mark.filterwarnings("ignore:pvt_kernels. .* falls back to PyTorch")
@pytest.mark.thorough
@fuzzed
def test_a_patched_model_computes_what_it_did(seed):
    rng = random.Random(seed)
    family, training = rng.choice(list(FAMILIES)), rng.random() < 0.5
    names = places(build(family, seed))
    before = [draw(rng, names) for _ in range(rng.randint(0, 2))]
    after = [draw(rng, names) for _ in range(rng.randint(0, 2))]
    # built twice: what old parametrizations and pruning leave can't be copied
    unpatched, model = (build(family, seed).train(training) for _ in range(2))
    for one in (unpatched, model):
        torch.manual_seed(seed)
        made = apply(one, before)
        if one is model:
            report = pvt_kernels.patch(model)
        made += apply(one, after)
    told = [(name, change.__name__) for name, change in made]
    print(f"seed {seed}: {family}, {told}, training={model.training}\n{report}")

    size = rng.choice([(64, 64), (64, 96)]) if family not in ("pvt", "timm_twins") else (64, 64)
    x = torch.randn(rng.randint(1, 2), 3, *size)
    expected, actual = results(unpatched, x), results(model, x)
    assert list(actual) == list(expected)
    compare(expected, actual, coarse=any(change in COARSE for _, change in made))
    pvt_kernels.unpatch(model)
    again = results(model, x)
    for name, tensor in results(unpatched, x).items():
        assert torch.equal(again[name], tensor), name


def compare(expected: dict[str, Tensor], actual: dict[str, Tensor], coarse: bool) -> None:
    """Each within some roundings of the other, at the scale of the gradients of the module around.

    That of a key's bias is 0, and its error but rounding.
    """
    scales: dict[str, float] = {}
    for name, tensor in expected.items():
        around = _around(name)
        scales[around] = (scales.get(around, 0.0) ** 2 + tensor.double().norm().item() ** 2) ** 0.5
    for name, tensor in expected.items():
        eps = torch.finfo(torch.bfloat16 if coarse else torch.float32).eps
        error = (actual[name].double() - tensor.double()).norm().item()
        allowed = (8 if coarse else ROUNDINGS) * eps * scales[_around(name)]
        assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"


def _around(name: str) -> str:
    """The module that holds a parameter's layer, whatever a parametrization made of the name."""
    return re.sub(r"\.parametrizations\.(\w+)\.original\d*$", r".\1", name).rsplit(".", 2)[0]
