"""The definition, run through the same operators as the kernels: for tests, on any device."""

from pvt_kernels.backends.base import Backend, dropout_reasons
from pvt_kernels.backends.reference import attention, spatial_reduction

BACKEND = Backend(
    "reference",
    modules={"attention": attention, "spatial_reduction": spatial_reduction},
    reasons={"attention": dropout_reasons, "spatial_reduction": lambda _: []},
)
