"""Fused spatial-reduction attention (SRA), the attention of Pyramid Vision Transformers."""

from importlib.metadata import version as _version

# first, since they act when imported: one tells whoever typed a command that PyTorch is being
# imported, one says in a line that there is no compiled module
# isort: off
from pvt_kernels import startup as _startup  # noqa: F401
from pvt_kernels import _compiled as _compiled

# isort: on
from pvt_kernels.backends import Decision, explain, use_backend
from pvt_kernels.integrations import patch, unpatch
from pvt_kernels.layers import SRAttention
from pvt_kernels.ops.attention import attention
from pvt_kernels.ops.feed_forward import feed_forward
from pvt_kernels.ops.multi_head_attention import multi_head_attention
from pvt_kernels.ops.spatial_reduction import spatial_reduction

__version__ = _version("pvt_kernels")

__all__ = [
    "Decision",
    "SRAttention",
    "attention",
    "explain",
    "feed_forward",
    "multi_head_attention",
    "patch",
    "spatial_reduction",
    "unpatch",
    "use_backend",
]
