"""Pyramid Vision Transformers built on this package's spatial-reduction attention.

Every model is a classifier, or with features_only=True a feature pyramid for detection and
segmentation. Where timm is installed, importing this module registers them all with it under the
prefix "pvtk": `timm.create_model("pvtk_small")`, `timm.create_model("pvtk_v2_b2")`.
"""

import importlib.util
import warnings

from pvt_kernels.models.ablations import pvt_small_columnar, pvt_small_full_attention
from pvt_kernels.models.checkpoint import Loaded, load_checkpoint
from pvt_kernels.models.flops import count_flops
from pvt_kernels.models.pvt import (
    PyramidVisionTransformer,
    pvt_huge,
    pvt_large,
    pvt_medium,
    pvt_small,
    pvt_tiny,
)
from pvt_kernels.models.pvt_v2 import (
    PyramidVisionTransformerV2,
    pvt_v2_b0,
    pvt_v2_b1,
    pvt_v2_b2,
    pvt_v2_b2_linear,
    pvt_v2_b3,
    pvt_v2_b4,
    pvt_v2_b5,
)
from pvt_kernels.models.registry import create, names

__all__ = [
    "Loaded",
    "PyramidVisionTransformer",
    "PyramidVisionTransformerV2",
    "count_flops",
    "create",
    "load_checkpoint",
    "names",
    "pvt_huge",
    "pvt_large",
    "pvt_medium",
    "pvt_small",
    "pvt_small_columnar",
    "pvt_small_full_attention",
    "pvt_tiny",
    "pvt_v2_b0",
    "pvt_v2_b1",
    "pvt_v2_b2",
    "pvt_v2_b2_linear",
    "pvt_v2_b3",
    "pvt_v2_b4",
    "pvt_v2_b5",
]


def _register_with_timm() -> None:
    if importlib.util.find_spec("timm") is None:
        return
    try:
        from pvt_kernels.models import timm_registry  # noqa: F401
    except Exception as error:
        warnings.warn(
            "pvt_kernels.models are not registered with timm, which is installed but fails: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


_register_with_timm()
