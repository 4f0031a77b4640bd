"""Loading checkpoints: of the original code, as published and as its training scripts write them.

What stands around the weights, in front of their names or beside them is found and said. Files are
read without running code that is in them.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pvt_kernels.models.pyramid import Pyramid

_log = logging.getLogger(__name__)

_ACCEPTED = "what torch.save wrote of weights, or of a dict with them as model or state_dict"
# of what an error or a report lists, the rest of which it counts
_LISTED = 3
# where training scripts keep the weights in what they save
_WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "network",
    "net",
    "weights",
    "backbone",
    "encoder",
)
# what torch.compile, FSDP and activation checkpointing put into the names of what they wrap
_WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_HEAD = ("head.weight", "head.bias")
# where versions of Python have their paths
_PATHLIB = ("pathlib", "pathlib._local")


def _harmless() -> list[Any]:
    """What training scripts save beside weights: options, paths and NumPy's numbers."""
    paths = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
    paths |= {f"Pure{name}": path for name, path in paths.items()}
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        *((path, f"{m}.{name}") for name, path in paths.items() for m in _PATHLIB),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    ]


@dataclass(frozen=True)
class Loaded:
    """What loading a checkpoint did beside copying weights; true where that is anything.

    Attributes:
        prefix: what stood in front of the names of all weights that were taken, such as "module.".
        left_out: weights in the file that the model has no place for: of a head, or of other parts
            of what was trained, where the model is one part.
        fresh: weights of the model that stay as they were: the head's, where the file has none or
            one for another number of classes.
    """

    prefix: str = ""
    left_out: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.prefix or self.left_out or self.fresh)

    def __str__(self) -> str:
        parts = [f"taken without {self.prefix!r} in front of the names"] if self.prefix else []
        if self.left_out:
            parts.append(f"left out {listed(self.left_out)}")
        if self.fresh:
            parts.append(f"fresh in the model {listed(self.fresh)}")
        return "; ".join(parts)


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> Loaded:
    """Load the weights in a file into a model, and log what that took beside copying.

    The file holds weights, bare or in what a training script saved beside them, such as the
    original code's under "model". Prefixes like "module." and "backbone." are stripped, and where
    there is one, weights without it are left out. A head for another number of classes is left
    out, and the model's stays as it is, as it does where the file has none. All other weights must
    match by name and shape. timm's names of PVTv2 are translated.

    Args:
        model: one of this package's, or any other whose weights the file names alike.
        path: read with weights_only=True, so that it cannot run code.

    Returns:
        What was stripped and left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of PyTorch's, or not of this model; says which weights are
            missing, unknown or of another shape. The model stays as it was.
    """
    path = Path(path)
    loaded = load_weights(model, unwrap(load(path)), type(model).__name__, path, other_head=True)
    if loaded:
        _log.warning("%s: %s", path, loaded)
    return loaded


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of PyTorch's, or holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"missing checkpoint {path}")
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever comes up
        reason = _reason(path, error)
        raise ValueError(f"broken checkpoint {path}: {reason}; accepted {_ACCEPTED}") from error
    weights = unwrap(content) if isinstance(content, dict) else content
    if not isinstance(weights, Mapping) or not weights or not all(map(_is_weight, weights.items())):
        raise ValueError(f"{path} holds no weights, accepted {_ACCEPTED}")
    return content


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a file that torch.load refuses, in fewer words than its own."""
    if not path.stat().st_size:
        return "the file is empty"
    found = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", str(error))
    if found:
        return f"it holds a {found[1]}, which is not read, since that could run code"
    return "it is cut short or something else"


def unwrap(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights in a checkpoint's content: bare, or in what a training script wrote."""
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return unwrap(content[wrapper])
    return content


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    name: str,
    path: Path,
    other_head: bool = False,
) -> Loaded:
    """Load weights that match a model by name and shape, but for what stands in front of names.

    Args:
        name: of the model, in errors.
        path: of the checkpoint, in errors.
        other_head: whether a Pyramid's head may stay as it is, where the weights have none or one
            for another number of classes.

    Raises:
        ValueError: they don't match; says how many and which first. The model stays as it was.
    """
    own = model.state_dict()
    weights = {_plain(key): value for key, value in weights.items()}
    if isinstance(model, Pyramid):
        weights = from_timm(weights)
    prefix = _prefix(list(own), weights, path)
    taken = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    left_out = [key for key in weights if not key.startswith(prefix)]
    fresh: list[str] = []
    if other_head and isinstance(model, Pyramid):
        fresh = _fresh_head(model, own, taken)
        unused = [key for key in taken if key in fresh or key.split(".")[0] in model.unused_names]
        left_out += [prefix + key for key in unused]
        for key in unused:
            del taken[key]
    misfit = _misfit({k: v for k, v in own.items() if k not in fresh}, taken)
    if misfit:
        raise ValueError(f"{path} does not fit: {misfit}; accepted weights of {name}")
    model.load_state_dict(taken | {key: own[key] for key in fresh})
    return Loaded(prefix, left_out, fresh)


def from_timm(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """timm's names of PVTv2's weights as the original code's; others as they are."""
    if not any(re.search(r"(^|\.)stages\.0\.blocks\.0\.", key) for key in weights):
        return weights
    parts = {"downsample": "patch_embed", "blocks": "block", "norm": "norm"}
    translated = {}
    for key, value in weights.items():
        key = re.sub(r"(^|\.)patch_embed\.(?=proj|norm)", r"\1patch_embed1.", key)
        key = re.sub(
            r"(^|\.)stages\.(\d)\.(downsample|blocks|norm)\.",
            lambda found: f"{found[1]}{parts[found[3]]}{int(found[2]) + 1}.",
            key,
        )
        translated[re.sub(r"mlp\.dwconv\.(?!dwconv)", "mlp.dwconv.dwconv.", key)] = value
    return translated


def _plain(key: str) -> str:
    """A name without what compiling and sharding put into it."""
    for wrapped in _WRAPPED:
        key = key.replace(wrapped, "")
    return key


def _prefix(own: list[str], weights: Mapping[str, Tensor], path: Path) -> str:
    """What stands in front of a model's names in a checkpoint; "" where none of them is there."""
    if not own or own[0] in weights:
        return ""
    found = [key.removesuffix(own[0]) for key in weights if key.endswith(f".{own[0]}")]
    if not found:
        return ""
    known = {prefix: sum(prefix + key in weights for key in own) for prefix in found}
    best = [prefix for prefix in found if known[prefix] == max(known.values())]
    if len(best) > 1:
        raise ValueError(
            f"{path} holds weights under each of {listed(best)}; accepted a file with one of them"
        )
    return best[0]


def _fresh_head(
    model: Pyramid, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> list[str]:
    """The weights of a model's head that those in a file can't replace, if they belong to one."""
    heads = [key for key in _HEAD if key in own and key in weights]
    if len(heads) == len(_HEAD) and weights[_HEAD[0]].shape[1:] == own[_HEAD[0]].shape[1:]:
        return [key for key in heads if weights[key].shape != own[key].shape]
    classifier = [key for key in own if key.split(".")[0] in model.classifier_names]
    others = own.keys() & weights.keys()
    return classifier if others and others.isdisjoint(classifier) else []


def _misfit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Which keys and shapes differ, if any."""
    reshaped = [
        f"{key} is {tuple(value.shape)}, accepted {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    missing = [key for key in own if key not in weights]
    unknown = [key for key in weights if key not in own]
    parts = (
        (f"{len(missing)} of {len(own)} keys are missing", missing),
        (f"{len(unknown)} are unknown", unknown),
        (f"{len(reshaped)} have another shape", reshaped),
    )
    return "; ".join(f"{what} ({listed(names)})" for what, names in parts if names)


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
