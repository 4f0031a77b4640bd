"""The definition, run through the same operators as the kernels: for tests, on any device."""

from pvt_kernels.backends.base import Backend, dropout_reasons, hidden_dropout_reasons
from pvt_kernels.backends.reference import attention, feed_forward, spatial_reduction

BACKEND = Backend(
    "reference",
    modules={
        "attention": attention,
        "spatial_reduction": spatial_reduction,
        "feed_forward": feed_forward,
    },
    reasons={
        "attention": dropout_reasons,
        "spatial_reduction": lambda _: [],
        "feed_forward": hidden_dropout_reasons,
    },
)
