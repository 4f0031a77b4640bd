"""Registers the models with timm.

pvt_tiny becomes "pvtk_tiny", pvt_v2_b2 "pvtk_v2_b2", and so on: the prefix keeps them apart from
timm's own pvt_v2 models.
"""

from collections.abc import Callable
from typing import Any

import timm.models

from pvt_kernels.models import registry
from pvt_kernels.models.pyramid import Pyramid


def _timm_name(name: str) -> str:
    return name.replace("pvt_", "pvtk_", 1)


def _entrypoint(name: str) -> Callable[..., Pyramid]:
    timm_name = _timm_name(name)

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> Pyramid:
        if pretrained:
            raise ValueError(
                f"pretrained must be False for {timm_name}: no weights are hosted. Load a file "
                "of the published ones with pvt_kernels.models.load_checkpoint or checkpoint_path."
            )
        # timm's attributes are none of the class
        model: Any = registry.create(name, **kwargs)
        config = timm.models.resolve_pretrained_cfg(
            timm_name, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay
        )
        model.pretrained_cfg = model.default_cfg = config.to_dict()
        info = [
            {"num_chs": channels, "reduction": stride, "module": f"block{i + 1}"}
            for i, (channels, stride) in enumerate(
                zip(model.embed_dims, model.strides, strict=True)
            )
        ]
        model.feature_info = timm.models.FeatureInfo(info, out_indices=(0, 1, 2, 3))
        return model

    create.__name__ = create.__qualname__ = timm_name
    create.__doc__ = f"Build pvt_kernels.models.{name}."
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
