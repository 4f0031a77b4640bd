"""What the tests of all libraries share: a model's results, before and after."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import pvt_kernels
from pvt_kernels.benchmarking.accuracy import GRADIENT_BUDGET, OUTPUT_BUDGET
from pvt_kernels.integrations.classes import is_patched


def with_lively_weights(model: nn.Module) -> nn.Module:
    """Weights of unit gain, biases and norms that differ: no part can be left out unseen.

    With a fresh model's small weights every softmax would be nearly uniform. GELU takes the place
    of ReLU, whose gradient may be 0 for one rounding of a value and 1 for another.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.GELU())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def output(result: object) -> Tensor:
    """The tensor that a model was asked for."""
    for name in ("logits", "predicted_depth", "last_hidden_state"):
        if hasattr(result, name):
            return getattr(result, name)
    return result


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of all parameters for one input, with the same random state."""
    torch.manual_seed(1)
    model.zero_grad()
    out = output(model(x))
    out.backward(torch.randn(out.shape, dtype=torch.float64).to(out.dtype))
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), **gradients}


def assert_patch_keeps_results(model: nn.Module, x: Tensor, swapped: int, skipped: int = 0) -> None:
    """Patched results keep the error budget, and unpatching gives the first ones back.

    Each gradient may err by 3 times as much as the unpatched model's, and each output by twice,
    against the unpatched model in fp64. Beside that one rounding at the scale of the gradients of
    the module around is allowed: that of a key's bias is 0, and its error but rounding.
    """
    oracle = results(copy.deepcopy(model).double(), x.double())
    before = results(model, x)
    report = pvt_kernels.patch(model)
    assert len(report.swapped) == swapped, str(report)
    assert len(report.skipped) == skipped, str(report)
    after = results(model, x)
    pvt_kernels.unpatch(model)
    again = results(model, x)

    scales: dict[str, float] = {}
    for name, exact in oracle.items():
        module = name.rsplit(".", 2)[0]
        scales[module] = (scales.get(module, 0.0) ** 2 + exact.norm().item() ** 2) ** 0.5
    assert list(after) == list(before)
    for name, exact in oracle.items():
        factor = OUTPUT_BUDGET if name == "output" else GRADIENT_BUDGET
        yardstick, error = (distance(r[name], exact) for r in (before, after))
        allowed = factor * yardstick + torch.finfo(x.dtype).eps * scales[name.rsplit(".", 2)[0]]
        assert error <= allowed, f"{name}: error {error:.2e}, {yardstick:.2e} before the patch"
        assert after[name].dtype == before[name].dtype
        assert torch.equal(again[name], before[name]), name


def distance(tensor: Tensor, exact: Tensor) -> float:
    return (tensor.double() - exact).norm().item()


def patched_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_patched(module)]
