"""Fused spatial-reduction attention (SRA), the attention of Pyramid Vision Transformers."""

from importlib.metadata import version as _version

# first: it says in a line why there is no compiled module for all that follows
from pvt_kernels import _compiled as _compiled

# first: it acts when it is imported, before what takes seconds
from pvt_kernels import startup as _startup  # noqa: F401
from pvt_kernels.backends import Decision, explain, use_backend
from pvt_kernels.integrations import patch, unpatch
from pvt_kernels.layers import SRAttention
from pvt_kernels.ops.attention import attention
from pvt_kernels.ops.multi_head_attention import multi_head_attention
from pvt_kernels.ops.spatial_reduction import spatial_reduction

__version__ = _version("pvt_kernels")

__all__ = [
    "Decision",
    "SRAttention",
    "attention",
    "explain",
    "multi_head_attention",
    "patch",
    "spatial_reduction",
    "unpatch",
    "use_backend",
]
