"""Registers the models with timm.

pvt_tiny becomes "pvtk_tiny", pvt_v2_b2 "pvtk_v2_b2", and so on: the prefix keeps them apart from
timm's own pvt_v2 models. They take what these take, and have their methods.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import timm.models
import torch
from torch import Tensor, nn

from pvt_kernels.models import registry
from pvt_kernels.models.checkpoint import from_timm, unwrap
from pvt_kernels.models.pyramid import Pyramid

# timm's wrappers around a model's features whose results a pyramid's are
_FEATURE_CLASSES = ("list", "getter")


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Tensor]:
    """The weights in a checkpoint by this package's names: the original code's, or timm's."""
    return from_timm(unwrap(state_dict))


def _timm_name(name: str) -> str:
    return name.replace("pvt_", "pvtk_", 1)


def _entrypoint(name: str) -> Callable[..., Pyramid]:
    timm_name = _timm_name(name)

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        *,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        output_stride: int = 32,
        feature_cls: str = "list",
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Pyramid:
        config = timm.models.resolve_pretrained_cfg(
            timm_name, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay
        )
        if pretrained and not config.has_weights:
            raise ValueError(
                f"pretrained must be False for {timm_name}: no weights are hosted. Load a file "
                "of the published ones with pvt_kernels.models.load_checkpoint or checkpoint_path."
            )
        if output_stride != 32:
            raise ValueError(f"output_stride must be 32 for {timm_name}, got {output_stride}")
        if feature_cls not in _FEATURE_CLASSES:
            raise ValueError(f"feature_cls must be one of {_FEATURE_CLASSES}, got {feature_cls!r}")
        settings = config.to_dict()
        kwargs.setdefault("num_classes", settings["num_classes"])
        kwargs.setdefault("in_chans", settings["input_size"][0])
        with nullcontext() if device is None else torch.device(device):
            # timm's attributes are none of the class
            model: Any = registry.create(
                name, drop_rate=proj_drop_rate, head_drop_rate=drop_rate, **kwargs
            ).to(dtype=dtype)
        model.pretrained_cfg = model.default_cfg = settings
        model.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"block{i + 1}"}
            for i, (channels, stride) in enumerate(
                zip(model.embed_dims, model.strides, strict=True)
            )
        ]
        if model.features_only:
            model.feature_info = timm.models.FeatureInfo(model.feature_info, model.out_indices)
        if pretrained:
            timm.models.load_pretrained(
                model,
                pretrained_cfg=settings,
                num_classes=model.num_classes,
                in_chans=model.in_chans,
                filter_fn=checkpoint_filter_fn,
                cache_dir=cache_dir,
            )
        return model

    create.__name__ = create.__qualname__ = timm_name
    create.__doc__ = f"""Build pvt_kernels.models.{name}, as timm builds its own pvt_v2.

    Takes the constructor's keyword arguments, but that drop_rate is of the head and proj_drop_rate
    of what the constructor calls drop_rate, and moreover output_stride, which is 32, feature_cls,
    device and dtype.
    """
    return create


# timm looks for the configurations under this name in the module that registers a model
default_cfgs = timm.models.generate_default_cfgs(
    {
        _timm_name(name): {
            "crop_pct": 0.9,
            "pool_size": (7, 7),
            "first_conv": "patch_embed1.proj",
            "classifier": "head",
        }
        for name in registry.names()
    }
)

for _name in registry.names():
    globals()[_timm_name(_name)] = timm.models.register_model(_entrypoint(_name))
