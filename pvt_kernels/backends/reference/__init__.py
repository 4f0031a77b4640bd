"""The definition, run through the same operators as the kernels: for tests, on any device."""

from typing import ClassVar

from pvt_kernels.backends.base import AttentionInputs, Backend, Inputs
from pvt_kernels.backends.reference import attention, spatial_reduction


class ReferenceBackend(Backend):
    name = "reference"
    implementations: ClassVar = {"attention": attention, "spatial_reduction": spatial_reduction}

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        if isinstance(inputs, AttentionInputs) and inputs.dropout:
            return ["attention dropout is active"]
        return []
