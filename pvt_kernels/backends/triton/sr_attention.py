"""The whole layer in Triton: plans of launches around PyTorch's matrix products.

A call allocates what it returns and saves, and hands addresses to the plans; everything that
depends on sizes alone is done when a `Layer` is made. Sizes are spelled out for new_empty(), which
takes a third longer for a tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends.composed_layer import ComposedLayer
from pvt_kernels.backends.tensors import aligned_contiguous, current_stream, memory_format
from pvt_kernels.backends.triton import attention, multi_head_attention, spatial_reduction
from pvt_kernels.backends.triton.launch import UNIT, Launch, gpu_of, wide_rows
from pvt_kernels.backends.triton.multi_head_attention import linear_gradients
from pvt_kernels.backends.triton.plan import Plan, placeholder, plan
from pvt_kernels.backends.triton.spatial_reduction import BY_TOKEN
from pvt_kernels.backends.weights import permuted


def make(
    x: Tensor,
    H: int,
    W: int,
    parameters: Sequence[Tensor | None],
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


class Layer:
    """The layer for tensors of one form: shapes, strides, dtypes, a device.

    Threads may share it. PyTorch's permission to use TF32 belongs to the form.

    Args:
        x: tokens (B, N, C); like the parameters, nothing but its form is used.
        parameters: as `forward` takes them.
    """

    def __init__(
        self,
        x: Tensor,
        H: int,
        W: int,
        parameters: Sequence[Tensor | None],
        heads: int,
        scale: float,
        eps: float,
    ) -> None:
        B, N, C = x.shape
        conv_weight = parameters[0]
        self.gpu, self.device = gpu_of(x), x.device.index
        self.heads, self.scale, self.eps, self.size = heads, scale, eps, (H, W)
        forms = [None if t is None else _form(t) for t in parameters]
        # as the kernels read them
        self.x = wide_rows(_form(x))
        self.forms = forms[:1] + [None if t is None else t.contiguous() for t in forms[1:]]
        self.fits = self.x.stride() == x.stride() and all(
            a is None or a.stride() == b.stride() for a, b in zip(forms, self.forms, strict=True)
        )
        self.reduces = conv_weight is not None
        R = conv_weight.shape[-1] if self.reduces else 1
        M = (H // R) * (W // R) if self.reduces else N
        self.x_shape, self.y_shape, self.kv_rows = (B, N, C), (B, M, C), (B * M, 2 * C)
        self.weight_format = memory_format(conv_weight) if self.reduces else None
        self.lse_shape, self.rstd_shape = (B, heads, N), (B, M)
        self.sums_rows = linear_gradients.pays(self.gpu, x.dtype, C, B * N)
        self.tile = multi_head_attention.fused_tile(self.gpu, x.dtype, C, C // heads, B, N)

    def forward(
        self,
        x: Tensor,
        conv_weight: Tensor | None,
        conv_bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        q_weight: Tensor,
        q_bias: Tensor | None,
        kv_weight: Tensor,
        kv_bias: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor | None,
        save: bool,
    ) -> tuple[Tensor | None, ...]:
        """The result; with `save` also y, normalized, rstd, kv, o, lse and the conv's matrix.

        They are as sr_attention_forward has them, None where there are none, and the matrix is the
        convolution's weight as the kernels read it.
        """
        stream = current_stream(self.device)
        x_address = x.data_ptr()
        if not self.fits or x_address % 16:
            x = wide_rows(x)
            x_address = x.data_ptr()
        y = normalized = rstd = matrix = o = lse = None
        reduction, attend, workspace_bytes = self._saving if save else self._inference
        # the plans follow each other on the stream, so that they share it
        workspace = x.new_empty(workspace_bytes, dtype=torch.uint8)
        if self.reduces:
            matrix = permuted(conv_weight, BY_TOKEN, not save)
            vectors = conv_bias.data_ptr(), norm_weight.data_ptr(), norm_bias.data_ptr()
            if not self.fits or (vectors[0] | vectors[1] | vectors[2]) % 16:
                copies = [aligned_contiguous(t) for t in (conv_bias, norm_weight, norm_bias)]
                vectors = [t.data_ptr() for t in copies]
            y = x.new_empty(*self.y_shape)
            addresses = [x_address, matrix.data_ptr(), *vectors, y.data_ptr()]
            if save:
                normalized = x.new_empty(*self.y_shape, dtype=torch.float32)
                rstd = x.new_empty(*self.rstd_shape, dtype=torch.float32)
                addresses += normalized.data_ptr(), rstd.data_ptr()
            addresses.append(workspace.data_ptr())
            reduction.launch(stream, addresses)
        kv = F.linear(x if y is None else y, kv_weight, kv_bias)
        if save:
            lse = x.new_empty(*self.lse_shape, dtype=torch.float32)
        if self.tile is None:
            q = F.linear(x, q_weight, q_bias)
            o = x.new_empty(*self.x_shape)
            addresses = [q.data_ptr(), kv.data_ptr(), o.data_ptr()]
        else:
            layers = [
                q_weight.data_ptr(),
                0 if q_bias is None else q_bias.data_ptr(),
                out_weight.data_ptr(),
                0 if out_bias is None else out_bias.data_ptr(),
            ]
            if not self.fits or (layers[0] | layers[1] | layers[2] | layers[3]) % 16:
                tensors = (q_weight, q_bias, out_weight, out_bias)
                copies = [None if t is None else aligned_contiguous(t) for t in tensors]
                layers = [0 if t is None else t.data_ptr() for t in copies]
            result = x.new_empty(*self.x_shape)
            addresses = [x_address, kv.data_ptr(), *layers, result.data_ptr()]
            if save:
                o = x.new_empty(*self.x_shape)
                addresses.append(o.data_ptr())
        if save:
            addresses.append(lse.data_ptr())
        addresses.append(workspace.data_ptr())
        attend.launch(stream, addresses)
        if self.tile is None:
            result = F.linear(o, out_weight, out_bias)
        return (result, y, normalized, rstd, kv, o, lse, matrix) if save else (result,)

    def backward(
        self,
        dresult: Tensor,
        x: Tensor,
        conv_weight: Tensor | None,
        conv_bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        q_weight: Tensor,
        q_bias: Tensor | None,
        kv_weight: Tensor,
        kv_bias: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor | None,
        y: Tensor | None,
        normalized: Tensor | None,
        rstd: Tensor | None,
        kv: Tensor,
        o: Tensor,
        lse: Tensor,
        matrix: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x and of the parameters, in the order in which `forward` takes them.

        `dresult` may have any strides; the rest is what the forward took and returned.
        """
        stream = current_stream(self.device)
        B, N, C = self.x_shape
        plan, workspace_bytes = self._attention_backward
        dresult, rows = dresult.reshape(B * N, C), x.reshape(B * N, C)
        q = F.linear(rows, q_weight, q_bias)
        do = dresult @ out_weight
        dq, dkv = x.new_empty(B * N, C), x.new_empty(*self.kv_rows)
        workspace = x.new_empty(workspace_bytes, dtype=torch.uint8)
        addresses = (
            *(do.data_ptr(), q.data_ptr(), kv.data_ptr(), o.data_ptr(), lse.data_ptr()),
            *(dq.data_ptr(), dkv.data_ptr(), workspace.data_ptr()),
        )
        plan.launch(stream, addresses)
        del q, do, workspace
        dx = torch.mm(dq, q_weight)
        if self.reduces:
            dy, inputs = torch.mm(dkv, kv_weight), y.view(-1, C)
            dreduction = self._reduce_backward(
                stream, dy, x, conv_weight, norm_weight, normalized, rstd, dx, matrix
            )
        else:
            dreduction, inputs = (None,) * 4, rows
            # added in the product itself
            dx.addmm_(dkv, kv_weight)
        if self.sums_rows:
            dlayers = self._linear_gradients(stream, dq, rows, dresult, o.view(B * N, C))
            biases = (q_bias, out_bias)
            dq_layer, dout_layer = (
                (dweight, None if bias is None else dbias)
                for (dweight, dbias), bias in zip(dlayers, biases, strict=True)
            )
        else:
            dq_layer = dq.t() @ rows, _bias_gradient(q_bias, dq)
            dout_layer = dresult.t() @ o.view(B * N, C), _bias_gradient(out_bias, dresult)
        return (
            *(dx.view(self.x_shape), *dreduction, *dq_layer),
            *(dkv.t() @ inputs, _bias_gradient(kv_bias, dkv), *dout_layer),
        )

    def _linear_gradients(
        self, stream: int, dq: Tensor, x: Tensor, dresult: Tensor, o: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The gradients of weight and bias of the q layer, and of the out layer."""
        C = self.x_shape[2]
        plan, workspace_bytes = self._rows_sums
        tensors = dq, x, dresult, o = [aligned_contiguous(t) for t in (dq, x, dresult, o)]
        results = [(dq.new_empty(C, C), dq.new_empty(C)) for _ in range(2)]
        workspace = dq.new_empty(workspace_bytes, dtype=torch.uint8)
        addresses = [t.data_ptr() for t in (*tensors, *results[0], *results[1], workspace)]
        plan.launch(stream, addresses)
        return results

    def _reduce_backward(
        self,
        stream: int,
        dy: Tensor,
        x: Tensor,
        conv_weight: Tensor,
        norm_weight: Tensor,
        normalized: Tensor,
        rstd: Tensor,
        dx: Tensor,
        matrix: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """dconv_weight, dconv_bias, dnorm_weight, dnorm_bias; the reduction's dx is added to dx."""
        plan, workspace_bytes = self._reduction_backward
        x_address, gamma = x.data_ptr(), norm_weight.data_ptr()
        if not self.fits or (x_address | gamma) % 16:
            x, norm_weight = wide_rows(x), aligned_contiguous(norm_weight)
            x_address, gamma = x.data_ptr(), norm_weight.data_ptr()
        if matrix is None:
            matrix = permuted(conv_weight, BY_TOKEN, keep=False)
        C = self.x_shape[2]
        dweight = torch.empty_like(conv_weight, memory_format=self.weight_format)
        dvectors = dbias, dgamma, dbeta = (
            x.new_empty(C),
            norm_weight.new_empty(C),
            norm_weight.new_empty(C),
        )
        workspace = x.new_empty(workspace_bytes, dtype=torch.uint8)
        addresses = (
            *(dy.data_ptr(), x_address, matrix.data_ptr(), gamma),
            *(normalized.data_ptr(), rstd.data_ptr(), dx.data_ptr(), dweight.data_ptr()),
            *(dbias.data_ptr(), dgamma.data_ptr(), dbeta.data_ptr(), workspace.data_ptr()),
        )
        plan.launch(stream, addresses)
        return dweight, *dvectors

    # The plans, each made at its first use, and the bytes of its workspace. Their slots are in the
    # order of the addresses above; what is no slot is workspace.

    def _plan(self, launches: Sequence[Launch], *slots: Tensor) -> tuple[Plan, int]:
        return plan(self.device, self.gpu, launches, slots)

    @cached_property
    def _matrix(self) -> Tensor:
        return placeholder([self.forms[0].shape[i] for i in BY_TOKEN], self.x.dtype)

    @cached_property
    def _saving(self) -> tuple[Plan | None, Plan, int]:
        return self._forward_plans(save=True)

    @cached_property
    def _inference(self) -> tuple[Plan | None, Plan, int]:
        return self._forward_plans(save=False)

    def _forward_plans(self, save: bool) -> tuple[Plan | None, Plan, int]:
        """The reduction's, the attention's, and the larger of their workspaces, in which is too
        what only a backward would need."""
        attend, workspace = self._fused(save) if self.tile is not None else self._unfused(save)
        if not self.reduces:
            return None, attend, workspace
        weight, *vectors = self.forms[:4]
        launches, (y, *others) = spatial_reduction.forward_launches(
            self.gpu, self.x, *self.size, weight, *vectors, self.eps, self._matrix
        )
        slots = (self.x, self._matrix, *vectors, y, *(others if save else ()))
        reduction, bytes_ = self._plan(launches, *slots)
        return reduction, attend, max(workspace, bytes_)

    def _fused(self, save: bool) -> tuple[Plan, int]:
        q_weight, q_bias, _, _, out_weight, out_bias = self.forms[4:]
        kv = self._kv
        layers = (q_weight, q_bias, out_weight, out_bias)
        launch, (result, o, lse) = multi_head_attention.fused_launch(
            self.tile, self.x, kv, *layers, self.heads, self.scale, save
        )
        slots = (placeholder((0,), self.x.dtype) if t is None else t for t in layers)
        saved = (o, lse) if save else ()
        return self._plan([launch], self.x, kv, *slots, result, *saved)

    def _unfused(self, save: bool) -> tuple[Plan, int]:
        q, kv = placeholder(self._head_shape, self.x.dtype), self._kv
        launches, (o, lse) = attention.forward_launches(self.gpu, q, *self._by_head(kv), self.scale)
        return self._plan(launches, q, kv, o, *((lse,) if save else ()))

    @cached_property
    def _attention_backward(self) -> tuple[Plan, int]:
        do, q, o = (placeholder(self._head_shape, self.x.dtype) for _ in range(3))
        kv, dkv, lse = self._kv, self._kv, placeholder(self.lse_shape, torch.float32)
        launches, dq = attention.backward_launches(
            self.gpu, do, q, *self._by_head(kv), o, lse, *self._by_head(dkv), self.scale
        )
        return self._plan(launches, do, q, kv, o, lse, dq, dkv)

    @cached_property
    def _reduction_backward(self) -> tuple[Plan, int]:
        weight, _, gamma, _ = self.forms[:4]
        dy = placeholder(self.y_shape, self.x.dtype)
        rows = [placeholder(s, torch.float32) for s in (self.y_shape, self.rstd_shape)]
        dx = placeholder(self.x_shape, self.x.dtype)
        launches, gradients = spatial_reduction.backward_launches(
            self.gpu, dy, self.x, *self.size, weight, gamma, *rows, self._matrix, dx
        )
        return self._plan(launches, dy, self.x, self._matrix, gamma, *rows, *gradients)

    @cached_property
    def _rows_sums(self) -> tuple[Plan, int]:
        B, N, C = self.x_shape
        dq, x, dresult, o = (placeholder((B * N, C), self.x.dtype) for _ in range(4))
        launches, (q_layer, out_layer) = linear_gradients.linear_gradients_launches(
            self.gpu, [(dq, x), (dresult, o)]
        )
        return self._plan(launches, dq, x, dresult, o, *q_layer, *out_layer)

    @property
    def _kv(self) -> Tensor:
        B, M, C = self.y_shape
        return placeholder((B, M, 2 * C), self.x.dtype)

    @property
    def _head_shape(self) -> tuple[int, ...]:
        B, N, C = self.x_shape
        return B, N, self.heads, C // self.heads

    def _by_head(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, M, heads, d) of keys and values side by side."""
        return kv.unflatten(2, (2, self.heads, -1)).unbind(2)


def _form(tensor: Tensor) -> Tensor:
    """The tensor without its memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _bias_gradient(bias: Tensor | None, drows: Tensor) -> Tensor | None:
    return None if bias is None else drows.sum(0)
