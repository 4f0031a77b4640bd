"""PyTorch's own fused attention and convolution: every device and dtype, and dropout."""

from pvt_kernels.backends.base import Backend
from pvt_kernels.backends.sdpa import attention, spatial_reduction

BACKEND = Backend(
    "sdpa",
    modules={"attention": attention, "spatial_reduction": spatial_reduction},
    reasons={"attention": lambda _: [], "spatial_reduction": lambda _: []},
    composite=True,
)
