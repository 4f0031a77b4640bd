"""PyTorch's own fused attention, convolutions and products: every device and dtype, and dropout."""

from pvt_kernels.backends.base import Backend
from pvt_kernels.backends.sdpa import attention, feed_forward, spatial_reduction

BACKEND = Backend(
    "sdpa",
    modules={
        "attention": attention,
        "spatial_reduction": spatial_reduction,
        "feed_forward": feed_forward,
    },
    reasons={
        "attention": lambda _: [],
        "spatial_reduction": lambda _: [],
        "feed_forward": lambda _: [],
    },
    composite=True,
)
