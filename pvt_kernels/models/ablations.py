"""PVT-Small without one of its two ideas, to see what each is worth.

They train, evaluate and are measured as every other backbone; the paper published no weights for
them.
"""

from typing import Any

from pvt_kernels.models import pvt
from pvt_kernels.models.pvt import PyramidVisionTransformer
from pvt_kernels.models.pyramid import Config

_SMALL = pvt.CONFIGS["pvt_small"]

CONFIGS = {
    "pvt_small_full_attention": Config(
        _SMALL.embed_dims, depths=_SMALL.depths, sr_ratios=(1, 1, 1, 1)
    ),
    # the widths, heads and depth of DeiT-Small (Touvron et al., ICML 2021)
    "pvt_small_columnar": Config(
        (384, 384, 384, 384),
        depths=(3, 3, 3, 3),
        num_heads=(6, 6, 6, 6),
        mlp_ratios=(4, 4, 4, 4),
        sr_ratios=(1, 1, 1, 1),
        patch_sizes=(16, 1, 1, 1),
    ),
}


def pvt_small_full_attention(**kwargs: Any) -> PyramidVisionTransformer:
    """Build PVT-Small with keys and values of every token: 20.2 M parameters.

    Takes PyramidVisionTransformer's keyword arguments.
    """
    return PyramidVisionTransformer(CONFIGS["pvt_small_full_attention"], **kwargs)


def pvt_small_columnar(**kwargs: Any) -> PyramidVisionTransformer:
    """Build PVT without a pyramid: patches of 16 x 16 and one width from end to end, as in ViT.

    22.7 M parameters. With features_only all four maps have stride 16. Takes
    PyramidVisionTransformer's keyword arguments.
    """
    return PyramidVisionTransformer(CONFIGS["pvt_small_columnar"], **kwargs)
