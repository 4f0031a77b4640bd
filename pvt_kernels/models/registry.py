"""The models by name."""

from collections.abc import Callable
from typing import Any

from pvt_kernels.models import ablations, pvt, pvt_v2
from pvt_kernels.models.pyramid import Pyramid

_CONSTRUCTORS: dict[str, Callable[..., Pyramid]] = {
    name: getattr(module, name) for module in (pvt, pvt_v2, ablations) for name in module.CONFIGS
}


def names() -> list[str]:
    """Return the names of all models: PVT, then PVTv2, small to large, and the ablations."""
    return list(_CONSTRUCTORS)


def create(name: str, **kwargs: Any) -> Pyramid:
    """Build the model called `name`, one of `names()`, from its constructor's arguments.

    Raises:
        ValueError: there is no such model.
    """
    if name not in _CONSTRUCTORS:
        raise ValueError(f"name must be one of {', '.join(names())}, got {name!r}")
    return _CONSTRUCTORS[name](**kwargs)
