"""A mapping for Hugging Face's package `kernels`, which replaces layers' forwards by its own means.

    from kernels import Mode, kernelize, register_kernel_mapping
    from pvt_kernels.integrations import hf_kernels

    register_kernel_mapping(hf_kernels.mapping(model, "cpu"))
    kernelize(model, mode=Mode.INFERENCE, device="cpu")

Nothing is downloaded: the layers are made of this package's adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

from torch import nn

from pvt_kernels.integrations.classes import ADAPTERS
from pvt_kernels.integrations.patching import patch


@dataclass(frozen=True)
class LayerRepository:
    """What `kernels` loads a layer from: here, from the class whose forward it takes over."""

    original: type[nn.Module]
    family: str

    def load(self) -> type[nn.Module]:
        """A stateless layer, with the signature of the class's forward."""
        original, adapter = self.original, ADAPTERS[self.family]

        @wraps(original.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return adapter.call(self, partial(original.forward, self), args, kwargs)

        members = {"forward": forward, "can_torch_compile": True, "has_backward": True}
        return type(original.__name__, (nn.Module,), members)


def mapping(model: nn.Module, *devices: str) -> dict[str, dict[str, LayerRepository]]:
    """For `kernels.register_kernel_mapping`: the layers of a model that patch() would swap.

    Their classes become known to `kernels` under their own names, and those of their modules that
    patch() would leave alone are left alone.

    Args:
        model: as patch() takes it; not changed.
        devices: types such as "cpu" and "cuda".

    Raises:
        ImportError: if `kernels` is not installed.
        TypeError: if model is no torch.nn.Module.
    """
    from kernels import replace_kernel_forward_from_hub

    layers: dict[str, dict[str, LayerRepository]] = {}
    for row in patch(model, dry_run=True).rows:
        original = type(model.get_submodule(row.module))
        if row.swapped and original.__name__ not in layers:
            replace_kernel_forward_from_hub(original, original.__name__, condition=_is_served)
            repository = LayerRepository(original, row.family)
            layers[original.__name__] = dict.fromkeys(devices, repository)
    return layers


def _is_served(module: nn.Module) -> bool:
    return patch(module, dry_run=True).rows[0].swapped
