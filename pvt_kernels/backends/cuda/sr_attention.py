"""The whole layer on NVIDIA GPUs: the CUDA kernels' plans."""

from __future__ import annotations

import torch
from torch import Tensor

from pvt_kernels.backends.cuda import attention, spatial_reduction
from pvt_kernels.backends.cuda.spatial_reduction import BY_PATCH
from pvt_kernels.backends.cuda.tensors import device_index
from pvt_kernels.backends.planned_layer import Parameters, PlannedLayer, Plans
from pvt_kernels.backends.tensors import dtype_name


def make(
    x: Tensor,
    H: int,
    W: int,
    parameters: Parameters,
    heads: int,
    scale: float,
    eps: float,
) -> Layer:
    """The layer for such tensors."""
    return Layer(x, H, W, parameters, heads, scale, eps)


class Layer(PlannedLayer):
    """The layer on the plans of the ops' kernels."""

    order = BY_PATCH

    def __init__(
        self,
        x: Tensor,
        H: int,
        W: int,
        parameters: Parameters,
        heads: int,
        scale: float,
        eps: float,
    ) -> None:
        super().__init__(x, H, W, parameters, heads, scale, eps)
        B, N, C = x.shape
        d, dtype, device = C // heads, dtype_name(x), device_index(x)
        self.attention = B, N, self.M, heads, d, dtype, scale, device
        self.queries, self.keys = (N * C, C, d), (self.M * 2 * C, 2 * C, d)
        conv_weight, _, norm_weight, _, *_ = parameters
        if conv_weight is not None:
            dtypes = dtype, dtype_name(norm_weight)
            self.reduction = B, H, W, C, self.R, *dtypes, eps, device
            self.x_strides = x.stride()[:2]
            form = {"memory_format": self.weight_format, "device": "meta"}
            self.dweight = spatial_reduction.weight_strides(torch.empty_like(conv_weight, **form))

    def forward_plans(self, saves: bool) -> Plans:
        """As PlannedLayer has them."""
        queries, keys = self.queries, self.keys
        attend = attention.forward_plan(self.attention, queries, keys, keys, saves)
        reduction, bytes_ = None, attend.workspace
        if self.reduces:
            reduction = spatial_reduction.forward_plan(self.reduction, self.x_strides, saves)
            bytes_ = max(bytes_, reduction.workspace)
        return Plans(reduction, attend, bytes_)

    def backward_plans(self) -> Plans:
        """As PlannedLayer has them."""
        queries, keys = self.queries, self.keys
        strides = queries, queries, keys, keys, queries
        attend = attention.backward_plan(self.attention, *strides, dkv_stride=keys[1])
        reduction, bytes_ = None, attend.workspace
        if self.reduces:
            reduction = spatial_reduction.backward_plan(
                self.reduction, self.x_strides, self.dweight, adds=True
            )
            bytes_ = max(bytes_, reduction.workspace)
        return Plans(reduction, attend, bytes_)
