"""What PyTorch's transforms, tracers and exporters make of a model, they make of a patched one."""

import copy
import importlib.util
import tempfile
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

import pvt_kernels
from pvt_kernels import SRAttention
from pvt_kernels.models.pvt import PyramidVisionTransformer
from pvt_kernels.models.pvt_v2 import PyramidVisionTransformerV2
from pvt_kernels.models.pyramid import Config

from .checks import with_lively_weights

timm = pytest.importorskip("timm", reason="timm is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed",
)
VERSION_4 = transformers.__version__.startswith("4.")

SIZES = {
    "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64), "num_heads": (1, 2, 5, 8),
    "sr_ratios": (8, 4, 2, 1),
}  # fmt: skip


class Logits(nn.Module):
    """A model of transformers, as a function of an image."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        out = self.model(x)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state


def timm_model(linear=False):
    from timm.models.pvt_v2 import PyramidVisionTransformerV2 as Model

    return Model(**SIZES, linear=linear, num_classes=5)


def segformer():
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], num_labels=5, decoder_hidden_size=24
    )
    return Logits(transformers.SegformerForSemanticSegmentation(config))


def older(model):
    """A SegFormer of transformers up to 5.1, written out, which torch.fx traces."""
    return not hasattr(model.model.segformer, "stages")


def pvt():
    config = transformers.PvtConfig(
        image_size=64, depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64]
    )
    return Logits(transformers.PvtModel(config))


def own(kind, **arguments):
    return kind(Config(**SIZES, **arguments), num_classes=5)


MODELS = {
    "timm": timm_model,
    "timm_linear": lambda: timm_model(linear=True),
    "segformer": segformer,
    "pvt": pvt,
    "own_pvt": lambda: own(PyramidVisionTransformer),
    "own_pvt_v2": lambda: own(PyramidVisionTransformerV2),
}
WITH_FX = ("timm", "timm_linear", "own_pvt", "own_pvt_v2")


@pytest.fixture(params=MODELS)
def case(request):
    """A patched model or one of this package's own, what computes the same in PyTorch, an image."""
    torch.manual_seed(0)
    model = with_lively_weights(MODELS[request.param]()).eval()
    unpatched = copy.deepcopy(model)
    if request.param.startswith("own"):
        unpatched = on_sdpa(copy.deepcopy(model))
    else:
        assert pvt_kernels.patch(model).swapped
    return request.param, model, unpatched, torch.randn(2, 3, 64, 64)


def on_sdpa(model):
    def fn(*args, **kwargs):
        with pvt_kernels.use_backend("sdpa"):
            return forward(*args, **kwargs)

    forward, model.forward = model.forward, fn
    return model


def per_sample_gradients(model, x):
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return functional_call(model, parameters, (x[None],)).square().mean()

    return vmap(grad(loss), in_dims=(None, 0))(parameters, x)


def test_torch_func(case):
    name, model, unpatched, x = case
    expected = per_sample_gradients(unpatched, x)
    actual = per_sample_gradients(model, x)
    assert list(actual) == list(expected)
    for one, other in zip(actual.values(), expected.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max() + 1))
    # and of the ordinary kind
    for i in range(len(x)):
        model.zero_grad()
        model(x[i : i + 1]).square().mean().backward()
        for key, parameter in model.named_parameters():
            one = actual[key][i]
            scale = float(one.abs().max() + 1)
            torch.testing.assert_close(parameter.grad, one, rtol=1e-3, atol=1e-4 * scale)
    few = x[:1, :, :, :]
    row = jacrev(lambda x: model(x).flatten()[:2])(few)
    torch.testing.assert_close(
        row, jacrev(lambda x: unpatched(x).flatten()[:2])(few), rtol=1e-3, atol=1e-3
    )
    tangent = torch.randn_like(few)
    fused = name in ("timm", "timm_linear") or (name == "segformer" and not older(model))
    if fused and not VERSION_4:
        # the modules' own forward is PyTorch's fused attention, which has no such derivative
        with pytest.raises(NotImplementedError, match="forward AD"):
            jvp(model, (few,), (tangent,))
        return
    slope = jvp(lambda x: model(x).flatten()[:2], (few,), (tangent,))[1]
    torch.testing.assert_close(slope, (row * tangent).flatten(1).sum(1), rtol=1e-2, atol=1e-3)
    assert slope.abs().min() > 0


@pytest.mark.filterwarnings("ignore")
def test_torch_jit_trace(case):
    _, model, unpatched, x = case
    with torch.no_grad():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            traced = torch.jit.trace(model, x)
        ours = [w for w in caught if "pvt_kernels" in w.filename and "models" not in w.filename]
        assert not [w for w in ours if issubclass(w.category, torch.jit.TracerWarning)]
        torch.testing.assert_close(traced(x), unpatched(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(traced(x[:1]), unpatched(x[:1]), rtol=1e-4, atol=1e-4)
    assert "pvt_kernels::" not in str(traced.inlined_graph)


@pytest.mark.filterwarnings("ignore")
def test_tensorboards_graph(case):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="no tensorboard here")
    _, model, _, x = case
    with tempfile.TemporaryDirectory() as folder, tensorboard.SummaryWriter(folder) as writer:
        writer.add_graph(model, x)


def test_torch_fx_and_feature_extraction(case):
    name, model, unpatched, x = case
    if name == "segformer" and older(model):
        graph = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(graph(x), unpatched(x), rtol=1e-4, atol=1e-4)
        return
    if name not in WITH_FX:
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(unpatched)
        return
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(x), unpatched(x), rtol=1e-4, atol=1e-4)
    other = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(graph(other), unpatched(other), rtol=1e-4, atol=1e-4)
    extraction = pytest.importorskip("torchvision.models.feature_extraction", reason="torchvision")
    extractor = extraction.create_feature_extractor(model, ["head"])
    torch.testing.assert_close(extractor(x)["head"], unpatched(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@needs_onnx
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_onnx(case, dynamo, tmp_path):
    import onnxruntime

    name, model, unpatched, x = case
    if name == "timm_linear" and not dynamo:
        with pytest.raises(torch.onnx.errors.SymbolicValueError, match="adaptive"):
            torch.onnx.export(unpatched, (x,), str(tmp_path / "model.onnx"), dynamo=False)
        return
    path = str(tmp_path / "model.onnx")
    options = {} if dynamo else {"opset_version": 17}
    torch.onnx.export(model, (x,), path, dynamo=dynamo, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), unpatched(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(case, strict):
    name, model, unpatched, x = case
    if strict and name in ("segformer", "pvt"):
        # transformers 5 takes a lock within its forward, which has nothing to do with the patch
        pytest.skip("torch.export with strict=True does not take transformers' models")
    program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), unpatched(x), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_torch_jit_script():
    model = timm_model().eval()
    expected, x = copy.deepcopy(model), torch.randn(1, 3, 64, 64)
    pvt_kernels.patch(model)
    torch.testing.assert_close(torch.jit.script(model)(x), expected(x))


@pytest.mark.filterwarnings("ignore")
def test_the_layer_in_a_trace_of_another_size():
    class Map(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, image):
            H, W = image.shape[2:]
            return self.layer(image.flatten(2).transpose(1, 2), H, W)

    model = Map(SRAttention(32, 2, True, sr_ratio=2)).eval()
    image, other = torch.randn(2, 32, 8, 6), torch.randn(1, 32, 9, 11)
    for traced in (torch.jit.trace(model, image), torch.fx.symbolic_trace(model)):
        torch.testing.assert_close(traced(image), model(image))
        torch.testing.assert_close(traced(other), model(other))
    with pytest.raises(ValueError, match=r"SRAttention: x must .* = \(2, 48, 32\)"):
        torch.jit.trace(model, torch.randn(2, 16, 8, 6))
