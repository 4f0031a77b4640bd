"""The whole layer on a GPU: a backend's plans of launches around PyTorch's matrix products.

A call allocates what it returns and saves, and hands addresses to the plans; everything that
depends on sizes alone is done when a `PlannedLayer` is made, or at the first use of a plan. Sizes
are spelled out for new_empty(), which takes a third longer for a tuple.
"""

# of what a reduction has there is either all or nothing, which pyright does not know
# pyright: reportAssignmentType=false, reportOptionalMemberAccess=false

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends.tensors import (
    aligned_contiguous,
    current_stream,
    has_aligned_strides,
    memory_format,
)
from pvt_kernels.backends.weights import permuted

# of how many elements each stride of x is a multiple: 16 bytes of a 16-bit dtype
UNIT = 8
# weight and bias of the convolution, of the norm, and of the projections q, kv and out
Parameters = Sequence[Tensor | None]


class Plan(Protocol):
    """Launches that follow each other on a stream, at addresses that each call has."""

    def launch(self, stream: int, addresses: Sequence[int]) -> None: ...


class Plans(NamedTuple):
    """Of one direction; they follow each other on the stream, so that they share a workspace.

    `reduction` is None where nothing is reduced.
    """

    reduction: Plan | None
    attention: Plan
    workspace_bytes: int


class PlannedLayer:
    """The layer for tensors of one form: shapes, strides, dtypes, a device.

    Threads may share it. A backend's own has the plans, whose addresses are those of the tensors
    that the methods name, in their order, and the workspace's.

    Args:
        x: tokens (B, N, C); like the parameters, nothing but its form is used.
        parameters: as `forward` takes them.

    Attributes:
        order: of the convolution's weight, as the kernels read it.
        reads_x: whether they read x. A backend that fuses sets it before.
    """

    order: tuple[int, ...]
    reads_x: bool = False

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
        conv_weight = parameters[0]
        self.device = x.device.index
        self.heads, self.scale, self.eps, self.size = heads, scale, eps, (H, W)
        self.reduces = conv_weight is not None
        self.R = 1 if conv_weight is None else conv_weight.shape[-1]
        M = (H // self.R) * (W // self.R) if self.reduces else N
        self.sizes, self.M = (B, N, C), M
        self.weight_format = None if conv_weight is None else memory_format(conv_weight)
        # from the keys' address to the values'
        self.to_values = C * x.element_size()
        self.reads_x = self.reads_x or self.reduces
        # but for addresses
        self.fits = not self.reads_x or (
            has_aligned_strides(x, UNIT)
            and all(t is None or t.is_contiguous() for t in parameters[1:4])
        )
        self._for_copies: PlannedLayer | None = None

    def forward_plans(self, saves: bool) -> Plans:
        """Of x, the convolution's matrix and bias, the norm's weight and bias, y, and with `saves`
        normalized and rstd; of q, k, v, o, and with `saves` lse."""
        raise NotImplementedError

    def backward_plans(self) -> Plans:
        """Of dy, x, the convolution's matrix, the norm's weight, normalized, rstd, dx, which is
        added to, dweight, dbias, dnorm_weight, dnorm_bias; of do, q, k, v, o, lse, dq, dk, dv."""
        raise NotImplementedError

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
        layers = q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias
        x_address = x.data_ptr()
        vectors = ()
        misaligned = x_address if self.reads_x else 0
        if conv_weight is not None:
            vectors = conv_bias.data_ptr(), norm_weight.data_ptr(), norm_bias.data_ptr()
            misaligned |= vectors[0] | vectors[1] | vectors[2]
        if misaligned % 16 or not self.fits:
            x, conv_bias, norm_weight, norm_bias = _copies(x, conv_bias, norm_weight, norm_bias)
            parameters = conv_weight, conv_bias, norm_weight, norm_bias, *layers
            return self._of_copies(x, parameters).forward(x, *parameters, save)
        stream = current_stream(self.device)
        plans = self._saving if save else self._inference
        workspace = x.new_empty(plans.workspace_bytes, dtype=torch.uint8)
        y = normalized = rstd = matrix = None
        if conv_weight is not None:
            B, _, C = self.sizes
            matrix = permuted(conv_weight, self.order, not save)
            # of two dimensions a product takes a fifth less time
            y = x.new_empty(B, self.M, C) if save else x.new_empty(B * self.M, C)
            addresses = [x_address, matrix.data_ptr(), *vectors, y.data_ptr()]
            if save:
                normalized = x.new_empty(B, self.M, C, dtype=torch.float32)
                rstd = x.new_empty(B, self.M, dtype=torch.float32)
                addresses += normalized.data_ptr(), rstd.data_ptr()
            addresses.append(workspace.data_ptr())
            plans.reduction.launch(stream, addresses)
        kv = F.linear(x if y is None else y, kv_weight, kv_bias)
        others = q_weight, q_bias, out_weight, out_bias
        result, o, lse = self.attend(stream, plans.attention, x, kv, *others, workspace, save)
        return (result, y, normalized, rstd, kv, o, lse, matrix) if save else (result,)

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
        B, N, C = self.sizes
        q = F.linear(x, q_weight, q_bias)
        o = x.new_empty(B, N, C)
        keys = kv.data_ptr()
        addresses = [q.data_ptr(), keys, keys + self.to_values, o.data_ptr()]
        lse = None
        if save:
            lse = x.new_empty(B, self.heads, N, dtype=torch.float32)
            addresses.append(lse.data_ptr())
        addresses.append(workspace.data_ptr())
        plan.launch(stream, addresses)
        return F.linear(o, out_weight, out_bias), o, lse

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
        B, N, C = self.sizes
        x_address, gamma = x.data_ptr(), 0
        if conv_weight is not None:
            gamma = norm_weight.data_ptr()
            if (x_address | gamma) % 16 or not self.fits:
                x, conv_bias, norm_weight, norm_bias = _copies(x, conv_bias, norm_weight, norm_bias)
                layers = q_weight, q_bias, kv_weight, kv_bias, out_weight, out_bias
                parameters = conv_weight, conv_bias, norm_weight, norm_bias, *layers
                saved = y, normalized, rstd, kv, o, lse, matrix
                return self._of_copies(x, parameters).backward(dresult, x, *parameters, *saved)
        stream = current_stream(self.device)
        plans = self._backward
        dresult, rows = dresult.reshape(B * N, C), x.reshape(B * N, C)
        q = F.linear(rows, q_weight, q_bias)
        do = torch.mm(dresult, out_weight)
        dq, dkv = x.new_empty(B * N, C), x.new_empty(B * self.M, 2 * C)
        workspace = x.new_empty(plans.workspace_bytes, dtype=torch.uint8)
        keys, dkeys = kv.data_ptr(), dkv.data_ptr()
        addresses = [
            *(do.data_ptr(), q.data_ptr(), keys, keys + self.to_values),
            *(o.data_ptr(), lse.data_ptr(), dq.data_ptr(), dkeys, dkeys + self.to_values),
            workspace.data_ptr(),
        ]
        plans.attention.launch(stream, addresses)
        del q, do
        dx = torch.mm(dq, q_weight)
        dreduction, inputs = (None,) * 4, rows
        if conv_weight is None:
            # added in the product itself
            dx.addmm_(dkv, kv_weight)
        else:
            dy, inputs = torch.mm(dkv, kv_weight), y.view(-1, C)
            if matrix is None:
                matrix = permuted(conv_weight, self.order, keep=False)
            dreduction = dweight, dbias, dgamma, dbeta = (
                torch.empty_like(conv_weight, memory_format=self.weight_format),
                x.new_empty(C),
                norm_weight.new_empty(C),
                norm_weight.new_empty(C),
            )
            addresses = [
                *(dy.data_ptr(), x_address, matrix.data_ptr(), gamma),
                *(normalized.data_ptr(), rstd.data_ptr(), dx.data_ptr(), dweight.data_ptr()),
                *(dbias.data_ptr(), dgamma.data_ptr(), dbeta.data_ptr(), workspace.data_ptr()),
            ]
            plans.reduction.launch(stream, addresses)
        dq_layer, dout_layer = self.layer_gradients(
            stream, (dq, rows, q_bias), (dresult, o.view(B * N, C), out_bias)
        )
        dkv_layer = layer_gradients(dkv, inputs, kv_bias)
        return dx.view(B, N, C), *dreduction, *dq_layer, *dkv_layer, *dout_layer

    def layer_gradients(
        self, stream: int, *layers: tuple[Tensor, Tensor, Tensor | None]
    ) -> Sequence[tuple[Tensor, Tensor | None]]:
        """As the function has them, of layers of as many rows and widths."""
        return [layer_gradients(*layer) for layer in layers]

    @cached_property
    def _saving(self) -> Plans:
        return self.forward_plans(saves=True)

    @cached_property
    def _inference(self) -> Plans:
        return self.forward_plans(saves=False)

    @cached_property
    def _backward(self) -> Plans:
        return self.backward_plans()

    def _of_copies(self, x: Tensor, parameters: Parameters) -> PlannedLayer:
        """The layer for copies of its tensors, of which `parameters` has those of the reduction."""
        if self._for_copies is None:
            sizes = self.heads, self.scale, self.eps
            self._for_copies = type(self)(x, *self.size, parameters, *sizes)
        return self._for_copies


def layer_gradients(
    dresult: Tensor, inputs: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Of a linear layer's weight and of its bias, if it has one, from rows."""
    return torch.mm(dresult.t(), inputs), None if bias is None else dresult.sum(0)


def _copies(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous ones, from a multiple of 16 bytes on."""
    return [None if t is None else aligned_contiguous(t) for t in tensors]
