"""PyTorch's own fused attention and convolution: every device and dtype, and dropout."""

from typing import ClassVar

from pvt_kernels.backends.base import Backend, Inputs
from pvt_kernels.backends.reference import spatial_reduction as reference
from pvt_kernels.backends.sdpa import attention


class SdpaBackend(Backend):
    name = "sdpa"
    composite = True
    # the definition of the spatial reduction already is PyTorch's convolution and LayerNorm
    implementations: ClassVar = {"attention": attention, "spatial_reduction": reference}

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        return []
