"""The spatial reduction through PyTorch's convolution and LayerNorm, which its definition is."""

from pvt_kernels.backends.reference.spatial_reduction import spatial_reduction

__all__ = ["spatial_reduction"]
