"""The whole layer in Triton: plans of the ops' launches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pvt_kernels.backends.composed_layer import ComposedLayer
from pvt_kernels.backends.planned_layer import (
    Parameters,
    Plan,
    PlannedLayer,
    Plans,
    layer_gradients,
)
from pvt_kernels.backends.tensors import aligned_contiguous
from pvt_kernels.backends.triton import attention, multi_head_attention, spatial_reduction
from pvt_kernels.backends.triton.launch import UNIT, Launch, gpu_of
from pvt_kernels.backends.triton.multi_head_attention import linear_gradients
from pvt_kernels.backends.triton.plan import placeholder, plan
from pvt_kernels.backends.triton.spatial_reduction import BY_TOKEN


def make(
    x: Tensor,
    H: int,
    W: int,
    parameters: Parameters,
    heads: int,
    scale: float,
    eps: float,
) -> Layer | ComposedLayer:
    """The layer for such tensors.

    Heads that are padded to a multiple of UNIT have no plans: their tensors are copied on the way.
    """
    if x.shape[-1] // heads % UNIT.value:
        return ComposedLayer(spatial_reduction, multi_head_attention, H, W, heads, scale, eps)
    return Layer(x, H, W, parameters, heads, scale, eps)


class Layer(PlannedLayer):
    """The layer on plans of the ops' launches, or with one kernel for attention and projections.

    PyTorch's permission to use TF32 belongs to the form.
    """

    order = BY_TOKEN

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
        B, N, C = x.shape
        self.gpu = gpu_of(x)
        self.tile = multi_head_attention.fused_tile(self.gpu, x.dtype, C, C // heads, B, N)
        self.reads_x = self.tile is not None
        super().__init__(x, H, W, parameters, heads, scale, eps)
        # as the kernels read them
        self.x = _form(x)
        self.forms = [None if t is None else _form(t) for t in parameters]
        self.forms[1:] = [None if t is None else t.contiguous() for t in self.forms[1:]]
        layers = (*parameters[4:6], *parameters[8:])
        self.layers_fit = all(t is None or t.is_contiguous() for t in layers)
        self.sums_rows = linear_gradients.pays(self.gpu, x.dtype, C, B * N)

    def attend(
        self,
        stream: int,
        plan: Plan,
        x: Tensor,
        kv: Tensor,
        q_weight: Tensor,
        q_bias: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor | None,
        workspace: Tensor,
        save: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The result; with `save` also o and lse."""
        tensors = q_weight, q_bias, out_weight, out_bias
        if self.tile is None:
            return super().attend(stream, plan, x, kv, *tensors, workspace, save)
        layers = [
            q_weight.data_ptr(),
            0 if q_bias is None else q_bias.data_ptr(),
            out_weight.data_ptr(),
            0 if out_bias is None else out_bias.data_ptr(),
        ]
        if not self.layers_fit or (layers[0] | layers[1] | layers[2] | layers[3]) % 16:
            copies = [None if t is None else aligned_contiguous(t) for t in tensors]
            layers = [0 if t is None else t.data_ptr() for t in copies]
        B, N, C = self.sizes
        result = x.new_empty(B, N, C)
        addresses = [x.data_ptr(), kv.data_ptr(), *layers, result.data_ptr()]
        o = lse = None
        if save:
            o = x.new_empty(B, N, C)
            lse = x.new_empty(B, self.heads, N, dtype=torch.float32)
            addresses += o.data_ptr(), lse.data_ptr()
        addresses.append(workspace.data_ptr())
        plan.launch(stream, addresses)
        return result, o, lse

    def layer_gradients(
        self, stream: int, *layers: tuple[Tensor, Tensor, Tensor | None]
    ) -> Sequence[tuple[Tensor, Tensor | None]]:
        """As PlannedLayer has them; of narrow layers by a kernel."""
        if not self.sums_rows:
            return [layer_gradients(*layer) for layer in layers]
        C = self.sizes[2]
        plan, workspace_bytes = self._rows_sums
        tensors = [aligned_contiguous(t) for rows in layers for t in rows[:2]]
        results = [(t.new_empty(C, C), t.new_empty(C)) for t in tensors[::2]]
        workspace = tensors[0].new_empty(workspace_bytes, dtype=torch.uint8)
        addresses = [t.data_ptr() for t in (*tensors, *results[0], *results[1], workspace)]
        plan.launch(stream, addresses)
        biases = [bias for *_, bias in layers]
        return [
            (dweight, None if bias is None else dbias)
            for (dweight, dbias), bias in zip(results, biases, strict=True)
        ]

    # The plans. What is no slot is workspace, in which is too what only a backward would need.

    def forward_plans(self, saves: bool) -> Plans:
        """As PlannedLayer has them; of the one kernel x, kv, weight and bias of the projections q
        and out, the result and with `saves` o and lse."""
        attend, bytes_ = self._unfused(saves) if self.tile is None else self._fused(saves)
        if not self.reduces:
            return Plans(None, attend, bytes_)
        weight, *vectors = self.forms[:4]
        launches, (y, *others) = spatial_reduction.forward_launches(
            self.gpu, self.x, *self.size, weight, *vectors, self.eps, self._matrix
        )
        slots = (self.x, self._matrix, *vectors, y, *(others if saves else ()))
        reduction, reduction_bytes = self._plan(launches, *slots)
        return Plans(reduction, attend, max(bytes_, reduction_bytes))

    def backward_plans(self) -> Plans:
        """As PlannedLayer has them."""
        B, N, C = self.sizes
        do, q, o = (self._queries for _ in range(3))
        k, v, dk, dv = (self._keys for _ in range(4))
        lse = placeholder((B, self.heads, N), torch.float32)
        launches, dq = attention.backward_launches(
            self.gpu, do, q, k, v, o, lse, dk, dv, self.scale
        )
        attend, bytes_ = self._plan(launches, do, q, k, v, o, lse, dq, dk, dv)
        if not self.reduces:
            return Plans(None, attend, bytes_)
        weight, _, gamma, _ = self.forms[:4]
        dy = placeholder((B, self.M, C), self.x.dtype)
        rows = [placeholder(s, torch.float32) for s in ((B, self.M, C), (B, self.M))]
        dx = placeholder((B, N, C), self.x.dtype)
        launches, gradients = spatial_reduction.backward_launches(
            self.gpu, dy, self.x, *self.size, weight, gamma, *rows, self._matrix, dx
        )
        slots = dy, self.x, self._matrix, gamma, *rows, *gradients
        reduction, reduction_bytes = self._plan(launches, *slots)
        return Plans(reduction, attend, max(bytes_, reduction_bytes))

    def _plan(self, launches: Sequence[Launch], *slots: Tensor) -> tuple[Plan, int]:
        return plan(self.device, self.gpu, launches, slots)

    @cached_property
    def _matrix(self) -> Tensor:
        return placeholder([self.forms[0].shape[i] for i in BY_TOKEN], self.x.dtype)

    def _fused(self, save: bool) -> tuple[Plan, int]:
        q_weight, q_bias, _, _, out_weight, out_bias = self.forms[4:]
        B, _, C = self.sizes
        kv = placeholder((B, self.M, 2 * C), self.x.dtype)
        layers = (q_weight, q_bias, out_weight, out_bias)
        launch, (result, o, lse) = multi_head_attention.fused_launch(
            self.tile, self.x, kv, *layers, self.heads, self.scale, save
        )
        slots = (placeholder((0,), self.x.dtype) if t is None else t for t in layers)
        saved = (o, lse) if save else ()
        return self._plan([launch], self.x, kv, *slots, result, *saved)

    def _unfused(self, save: bool) -> tuple[Plan, int]:
        q, k, v = self._queries, self._keys, self._keys
        launches, (o, lse) = attention.forward_launches(self.gpu, q, k, v, self.scale)
        return self._plan(launches, q, k, v, o, *((lse,) if save else ()))

    @cached_property
    def _rows_sums(self) -> tuple[Plan, int]:
        B, N, C = self.sizes
        dq, x, dresult, o = (placeholder((B * N, C), self.x.dtype) for _ in range(4))
        launches, (q_layer, out_layer) = linear_gradients.linear_gradients_launches(
            self.gpu, [(dq, x), (dresult, o)]
        )
        return self._plan(launches, dq, x, dresult, o, *q_layer, *out_layer)

    @property
    def _queries(self) -> Tensor:
        """Or o, or the gradient of either (B, N, heads, d)."""
        B, N, C = self.sizes
        return placeholder((B, N, self.heads, C // self.heads), self.x.dtype)

    @property
    def _keys(self) -> Tensor:
        """Keys, or values (B, M, heads, d), of keys and values side by side."""
        B, _, C = self.sizes
        kv = placeholder((B, self.M, 2, self.heads, C // self.heads), self.x.dtype)
        return kv.unbind(2)[0]


def _form(tensor: Tensor) -> Tensor:
    """The tensor without its memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
