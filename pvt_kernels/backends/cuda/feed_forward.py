"""The feed-forward network on NVIDIA GPUs: PyTorch's products around the kernels of
csrc/cuda/feed_forward_kernels.cu, a slab of the map at a time."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends import slabs
from pvt_kernels.backends.cuda.tensors import device_and_stream
from pvt_kernels.backends.slabs import Window
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name


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
        self._options = (activation, relu_before_conv, dtype_name(fc1_weight))
        self._device, self._stream = device_and_stream(fc1_weight)
        self._weight, self._bias = (
            None if t is None else aligned_contiguous(t) for t in (dw_weight, dw_bias)
        )

    def forward(self, window: Window, h: Tensor, a: Tensor) -> None:
        cuda.hidden_forward(self._call(window), h.data_ptr(), *self._conv(), a.data_ptr())

    def parts(self, window: Window) -> int:
        return cuda.hidden_parts(self._call(window))

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
        results = (t.data_ptr() for t in (dc, a, sums))
        call = self._call(window, above, below)
        cuda.hidden_dc(call, h.data_ptr(), *self._conv(), *results)

    def dh(self, window: Window, dc: Tensor, h: Tensor, sums: Tensor) -> None:
        weight, _ = self._conv()
        call = self._call(window)
        cuda.hidden_dh(call, dc.data_ptr(), weight, h.data_ptr(), sums.data_ptr())

    def _call(self, window: Window, above: int = 0, below: int = 0) -> cuda.Hidden:
        convolved = self._weight is not None
        sizes = (*window, above, below, self._hidden, convolved)
        return cuda.Hidden(*sizes, *self._options, device=self._device, stream=self._stream)

    def _conv(self) -> tuple[int, int]:
        """The addresses of weight and bias, 0 of what is not there."""
        weight, bias = (0 if t is None else t.data_ptr() for t in (self._weight, self._bias))
        return weight, bias


forward = partial(slabs.forward, _Kernels)
backward = partial(slabs.backward, _Kernels)
