"""The feed-forward network in Triton: PyTorch's products around the kernels of forward.py and
backward.py, a slab of the map at a time; reference.py has the formulas."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from pvt_kernels.backends import slabs
from pvt_kernels.backends.slabs import CONV_SUMS, PLAIN_SUMS, Window
from pvt_kernels.backends.tensors import aligned_contiguous, current_stream
from pvt_kernels.backends.triton.feed_forward.backward import dc_launch, dh_launch, parts_of
from pvt_kernels.backends.triton.feed_forward.forward import forward_launch
from pvt_kernels.backends.triton.launch import Gpu, Launch, gpu_of, padded
from pvt_kernels.backends.triton.plan import Plan, placeholder, plan


class Form(NamedTuple):
    """What launches depend on beside the slab: equal for all calls of a layer, and of others."""

    gpu: Gpu
    device: int | None
    dtype: torch.dtype
    hidden: int
    convolved: bool
    has_bias: bool
    activation: str
    relu_before_conv: bool


class _Kernels:
    """`slabs.Kernels` by launch plans, of which slabs and calls of the same sizes share one."""

    def __init__(
        self,
        fc1_weight: Tensor,
        dw_weight: Tensor | None,
        dw_bias: Tensor | None,
        activation: str,
        relu_before_conv: bool,
    ) -> None:
        self._form = Form(
            gpu_of(fc1_weight),
            fc1_weight.device.index,
            fc1_weight.dtype,
            len(fc1_weight),
            dw_weight is not None,
            dw_bias is not None,
            activation,
            relu_before_conv,
        )
        self._stream = current_stream(fc1_weight.device.index)
        self._conv = [aligned_contiguous(t) for t in (dw_weight, dw_bias) if t is not None]

    def forward(self, window: Window, h: Tensor, a: Tensor) -> None:
        self._launch(_forward_plan(self._form, window), h, *self._conv, a)

    def parts(self, window: Window) -> int:
        return parts_of(self._form.gpu, window, self._form.hidden, self._form.convolved)

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
        results = (dc, a, sums) if self._form.convolved else (dc, sums)
        self._launch(_dc_plan(self._form, window, above, below), h, *self._conv, *results)

    def dh(self, window: Window, dc: Tensor, h: Tensor, sums: Tensor) -> None:
        self._launch(_dh_plan(self._form, window), dc, self._conv[0], h, sums)

    def _launch(self, plan: Plan, *tensors: Tensor) -> None:
        # the plans have no workspace, which is their last slot
        plan.launch(self._stream, [*(t.data_ptr() for t in tensors), 0])


# Plans and launches, on tensors that stand for those of a call.


@lru_cache(maxsize=1024)
def _forward_plan(form: Form, window: Window) -> Plan:
    return _plan(form, *forward_of(form, window))


@lru_cache(maxsize=1024)
def _dc_plan(form: Form, window: Window, above: int, below: int) -> Plan:
    return _plan(form, *dc_of(form, window, above, below))


@lru_cache(maxsize=1024)
def _dh_plan(form: Form, window: Window) -> Plan:
    return _plan(form, *dh_of(form, window))


def _plan(form: Form, launch: Launch, slots: list[Tensor]) -> Plan:
    made, _ = plan(form.device or 0, form.gpu, [launch], slots)
    return made


def forward_of(form: Form, window: Window) -> tuple[Launch, list[Tensor]]:
    """The launch, and its tensors in the order in which a plan takes their addresses."""
    weight, bias = _conv(form)
    h, a = _hidden(form, _around(window)), _hidden(form, window)
    options = (form.activation, form.relu_before_conv)
    launch = forward_launch(form.gpu, window, h, weight, bias, a, *options)
    return launch, [h, *_given(weight, bias), a]


def dc_of(form: Form, window: Window, above: int, below: int) -> tuple[Launch, list[Tensor]]:
    """The same of dc."""
    weight, bias = _conv(form)
    own = window._replace(rows=window.rows - above - below)
    h, dc = _hidden(form, _around(window)), _hidden(form, window)
    a = _hidden(form, own) if form.convolved else h
    sums = _sums(form, window)
    options = (form.activation, form.relu_before_conv)
    launch = dc_launch(form.gpu, window, above, below, h, weight, bias, dc, a, sums, *options)
    results = (dc, a, sums) if form.convolved else (dc, sums)
    return launch, [h, *_given(weight, bias), *results]


def dh_of(form: Form, window: Window) -> tuple[Launch, list[Tensor]]:
    """The same of dh."""
    weight, _ = _conv(form)
    dc, h = _hidden(form, _around(window)), _hidden(form, window)
    sums = _sums(form, window)
    launch = dh_launch(form.gpu, window, dc, weight, h, sums, form.relu_before_conv)
    return launch, [dc, weight, h, sums]


def _around(window: Window) -> Window:
    return window._replace(rows=window.before + window.rows + window.after)


def _hidden(form: Form, window: Window) -> Tensor:
    wide = placeholder((window.tokens, padded(form.hidden)), form.dtype)
    return wide[:, : form.hidden]


def _sums(form: Form, window: Window) -> Tensor:
    count = CONV_SUMS if form.convolved else PLAIN_SUMS
    parts = parts_of(form.gpu, window, form.hidden, form.convolved)
    return placeholder((parts, count, padded(form.hidden)), torch.float32)


def _conv(form: Form) -> tuple[Tensor | None, Tensor | None]:
    weight = placeholder((form.hidden, 1, 3, 3), form.dtype) if form.convolved else None
    bias = placeholder((form.hidden,), form.dtype) if form.has_bias else None
    return weight, bias


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


forward = partial(slabs.forward, _Kernels)
backward = partial(slabs.backward, _Kernels)
