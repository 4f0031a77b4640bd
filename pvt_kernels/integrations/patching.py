"""patch(model) and unpatch(model)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import nn

from pvt_kernels import backends
from pvt_kernels.feed_forward_parts import FeedForwardParts
from pvt_kernels.integrations.adapter import Adapter
from pvt_kernels.integrations.classes import ADAPTERS, AUTO, is_patched, patched_class, restore
from pvt_kernels.integrations.contract import broken
from pvt_kernels.integrations.report import Report, Row
from pvt_kernels.integrations.structure import calls, network_calls, not_served_reasons
from pvt_kernels.layers import SRAttention
from pvt_kernels.parts import Parts

_NETWORKS = {a.family for a in ADAPTERS.values() if a.feed_forward is not None}


def patch(model: nn.Module, *, backend: str = AUTO, dry_run: bool = False) -> Report:
    """Swap a live model's attention and feed-forward for this package's, weights where they are.

    Finds, by their structure, the attention modules of the original PVT, PVTv2 and SegFormer
    code, timm (pvt_v2, twins), transformers (Pvt, PvtV2, Segformer, GLPN), mmdet and mmseg, and
    the feed-forward networks beside them.
    Parameters, state_dict, hooks and requires_grad stay as they are; a call that this package
    can't serve (output_attentions=True, an attention mask, active dropout within) runs the
    module's own forward.

        print(pvt_kernels.patch(model))
        with pvt_kernels.patch(model) as report: ...  # patched in here alone

    Args:
        model: any module that contains such modules, or one itself; changed in place.
        backend: "auto", or the backend that the patched modules are forced onto.
        dry_run: only report.

    Returns:
        A table of the modules: swapped or skipped, why, and on which backend they run.
        Leaving its `with` block unpatches what this call patched.

    Raises:
        TypeError: if model is no torch.nn.Module.
        ValueError: if backend is not the name of one.
    """
    _check_model("patch", model)
    if backend != AUTO and backend not in backends.BACKEND_NAMES:
        accepted = ", ".join(map(repr, (AUTO, *backends.BACKEND_NAMES)))
        raise ValueError(f"patch: backend must be one of {accepted}, got {backend!r}")
    report = Report([], dry_run)
    swaps = []
    for name, module in _walk(model):
        row = _row(name, module, backend)
        if row is None:
            continue
        report.rows.append(row)
        if row.swapped:
            swaps.append((module, patched_class(type(module), row.family, backend)))
    # another model's networks may look the same
    if all(row.module and row.family in _NETWORKS for row in report.rows):
        report.rows.clear()
        swaps.clear()
        warnings.warn(
            f"patch: {type(model).__name__} has no spatial-reduction attention", stacklevel=2
        )
    if not dry_run:
        for module, patched in swaps:
            module.__class__ = patched
            report.patched.append(module)
    return report


def unpatch(model: nn.Module) -> None:
    """Give all patched modules their own forward back; others stay as they are.

    Raises:
        TypeError: if model is no torch.nn.Module.
        RuntimeError: if something changed a patched module's class since; nothing is changed.
    """
    _check_model("unpatch", model)
    restore(module for _, module in _walk(model))


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """model.named_modules(), but for what is within torch.jit's modules or can't be looked into."""
    seen = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        if isinstance(module, torch.jit.ScriptModule):
            continue
        # not by an attribute, which a module may look up in a way of its own
        children = vars(module).get("_modules") or {}
        for child_name, child in reversed(children.items()):
            if isinstance(child, nn.Module):
                waiting.append((f"{name}.{child_name}" if name else child_name, child))


def _check_model(function: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


def _row(name: str, module: nn.Module, backend: str) -> Row | None:
    """What the report says of a module; None if it is none that patch() could swap."""
    if isinstance(module, SRAttention):
        return Row(name, "pvt_kernels", False, "it is this package's own", "")
    if isinstance(module, torch.jit.ScriptModule):
        return Row(name, "torch.jit", False, "it is compiled, and can't be looked into", "")
    # a module may be anything, and raise anything where it is looked at
    try:
        adapter = next((a for a in ADAPTERS.values() if a.matches(module)), None)
    except Exception:
        return None
    if adapter is None:
        return None
    try:
        row = _judge(name, module, adapter, backend)
        if row.swapped:
            patched_class(type(module), adapter.family, backend)
        return row
    except Exception as error:
        why = f"it can't be looked into: {type(error).__name__}: {error}"
        return Row(name, adapter.family, False, why, "")


def _judge(name: str, module: nn.Module, adapter: Adapter, backend: str) -> Row:
    """Whether a module that looks like one of the family can be swapped."""
    reasons = _unfamiliar(module, adapter)
    if reasons:
        return Row(name, adapter.family, False, "; ".join(reasons), "")
    # quantised layers have no parameters
    like = next(module.parameters(), torch.empty(0, device="cpu"))
    if adapter.feed_forward is not None:
        network = adapter.feed_forward(module)
        asked, exceptions = network_calls(network, like), _network_exceptions(network)
    elif adapter.parts is not None:
        own = adapter.parts(module)
        asked, exceptions = calls(own, like), _exceptions(module, own)
    else:
        return Row(name, adapter.family, True, "", "PyTorch")
    with nullcontext() if backend == AUTO else backends.use_backend(backend):
        decisions = [backends.decide(inputs) for inputs in asked]
    for decision in decisions:
        if decision.backend is None:
            why = "; ".join(decision.reasons[backend])
            return Row(name, adapter.family, False, f"{backend} can't run it: {why}", "")
    names = ", ".join(dict.fromkeys(str(decision.backend) for decision in decisions))
    return Row(name, adapter.family, True, "; ".join(exceptions), names)


def _unfamiliar(module: nn.Module, adapter: Adapter) -> list[str]:
    """Why the adapter can't take the module's place."""
    if is_patched(module):
        return ["it is patched already"]
    unknown = adapter.unknown_parameters(module)
    if unknown:
        return [f"its forward takes what is not known: {', '.join(unknown)}"]
    if "forward" in module.__dict__:
        return ["its forward was replaced on the instance"]
    try:
        reasons = adapter.reasons(module)
        if not reasons and adapter.parts is not None:
            reasons = not_served_reasons(module, adapter.parts(module))
    except AttributeError as error:
        return [f"it lacks a part: {error}"]
    if not reasons and (difference := broken(module, adapter)):
        return [difference]
    return reasons


def _exceptions(module: nn.Module, own: Parts) -> list[str]:
    """Which calls of a swapped module run its own forward."""
    exceptions = []
    if own.dropout_p > 0:
        exceptions.append(f"with attention dropout {own.dropout_p:g}, training runs its own")
    if getattr(getattr(module, "config", None), "output_attentions", False):
        exceptions.append("its configuration has output_attentions=True, which runs its own")
    return exceptions


def _network_exceptions(network: FeedForwardParts) -> list[str]:
    p = getattr(network.dropout, "p", 0)
    return [f"with dropout {p:g}, training runs its own"] if p > 0 else []
