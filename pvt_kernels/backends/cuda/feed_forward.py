"""The feed-forward network on NVIDIA GPUs: PyTorch's products around the kernels of
csrc/cuda/feed_forward_kernels.cu, a slab of the map at a time."""

from __future__ import annotations

from functools import lru_cache, partial

from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends import slabs
from pvt_kernels.backends.cuda.tensors import PLANS, device_index, launch
from pvt_kernels.backends.slabs import Window
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name

# as cuda.HiddenSizes
Sizes = tuple[int, int, int, int, int, int, int, int, bool, str, bool, str, int]


class _Kernels:
    """`slabs.Kernels` of one call."""

    def __init__(
        self,
        fc1_weight: Tensor,
        dw_weight: Tensor | None,
        dw_bias: Tensor | None,
        activation: str,
        relu_before_conv: bool,
    ) -> None:
        self._hidden = len(fc1_weight)
        self._options = activation, relu_before_conv, dtype_name(fc1_weight)
        self._device = device_index(fc1_weight)
        self._weight, self._bias = (
            None if t is None else aligned_contiguous(t) for t in (dw_weight, dw_bias)
        )

    def forward(self, window: Window, h: Tensor, a: Tensor) -> None:
        launch(_forward_plan(self._sizes(window)), h, self._weight, self._bias, a)

    def parts(self, window: Window) -> int:
        return _parts(self._sizes(window))

    def dc(
        self,
        window: Window,
        above: int,
        below: int,
        h: Tensor,
        dc: Tensor,
        a: Tensor,
        sums: Tensor,
    ) -> None:
        plan = _dc_plan(self._sizes(window, above, below))
        launch(plan, h, self._weight, self._bias, dc, a, sums)

    def dh(self, window: Window, dc: Tensor, h: Tensor, sums: Tensor) -> None:
        launch(_dh_plan(self._sizes(window)), dc, self._weight, h, sums)

    def _sizes(self, window: Window, above: int = 0, below: int = 0) -> Sizes:
        convolved = self._weight is not None
        return *window, above, below, self._hidden, convolved, *self._options, self._device


@lru_cache(PLANS)
def _forward_plan(sizes: Sizes) -> cuda.Plan:
    return cuda.plan_hidden_forward(sizes)


@lru_cache(PLANS)
def _parts(sizes: Sizes) -> int:
    return cuda.hidden_parts(sizes)


@lru_cache(PLANS)
def _dc_plan(sizes: Sizes) -> cuda.Plan:
    return cuda.plan_hidden_dc(sizes)


@lru_cache(PLANS)
def _dh_plan(sizes: Sizes) -> cuda.Plan:
    return cuda.plan_hidden_dh(sizes)


forward = partial(slabs.forward, _Kernels)
backward = partial(slabs.backward, _Kernels)
