"""The whole layer on NVIDIA GPUs: the CUDA kernels between PyTorch's matrix products.

A call allocates what it returns and saves, and hands addresses over; what depends on sizes alone is
asked once. Sizes are spelled out for new_empty(), which takes a third longer for a tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_kernels._C import cuda
from pvt_kernels.backends.cuda.spatial_reduction import BY_PATCH, weight_gradient
from pvt_kernels.backends.cuda.tensors import aligned, device_and_stream
from pvt_kernels.backends.recent import Recent
from pvt_kernels.backends.tensors import aligned_contiguous, dtype_name, memory_format
from pvt_kernels.backends.weights import permuted

# streams that a layer's calls are kept for
STREAMS = 8
# where a tensor in the workspace begins
ALIGNMENT = 256


class _Calls(NamedTuple):
    """The calls of a layer on a stream, and their workspaces in bytes."""

    attention: cuda.Attention
    reduction: cuda.SpatialReduction | None
    forward_bytes: int
    backward_bytes: int


def make(
    x: Tensor,
    H: int,
    W: int,
    parameters: Sequence[Tensor | None],
    heads: int,
    scale: float,
    eps: float,
) -> Layer:
    """The layer for such tensors."""
    return Layer(x, H, W, parameters, heads, scale, eps)


class Layer:
    """The layer for tensors of one form: shapes, strides, dtypes, a device.

    Threads may share it.

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
        conv_weight, _, norm_weight, _, *_ = parameters
        self.sizes, self.heads, self.scale, self.eps, self.size = x.shape, heads, scale, eps, (H, W)
        self.R = 1 if conv_weight is None else conv_weight.shape[-1]
        M = N if conv_weight is None else (H // self.R) * (W // self.R)
        self.M, self.d = M, C // heads
        self.dtype = dtype_name(x)
        self.norm_dtype = self.dtype if norm_weight is None else dtype_name(norm_weight)
        self.weight_format = None if conv_weight is None else memory_format(conv_weight)
        # what the kernels return and this layer does not keep: normalized and rstd, or lse
        unsaved = [B * M * C * 4, B * M * 4] if conv_weight is not None else []
        self.unsaved_bytes = [_padded(bytes_) for bytes_ in (*unsaved, B * heads * N * 4)]
        elements = 16 // x.element_size()
        self.fits = x.stride(-1) == 1 and all(
            stride % elements == 0 or size == 1
            for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True)
        )
        self.contiguous = all(t is None or t.is_contiguous() for t in parameters[1:4])
        self._kept: Recent[_Calls] = Recent(STREAMS)

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
        B, N, C = self.sizes
        M = self.M
        calls = self._calls(x)
        y = normalized = rstd = matrix = lse = None
        workspace = x.new_empty(calls.forward_bytes + sum(self.unsaved_bytes), dtype=torch.uint8)
        address = workspace.data_ptr()
        *unsaved, lse_address = self._unsaved(address + calls.forward_bytes)
        if conv_weight is not None:
            tokens = x if self.fits and x.data_ptr() % 16 == 0 else aligned(x)
            matrix = permuted(conv_weight, BY_PATCH, not save)
            vectors = [conv_bias.data_ptr(), norm_weight.data_ptr(), norm_bias.data_ptr()]
            if not self.contiguous or (vectors[0] | vectors[1] | vectors[2]) % 16:
                copies = [aligned_contiguous(t) for t in (conv_bias, norm_weight, norm_bias)]
                vectors = [t.data_ptr() for t in copies]
            y = x.new_empty(B, M, C)
            if save:
                normalized = x.new_empty(B, M, C, dtype=torch.float32)
                rstd = x.new_empty(B, M, dtype=torch.float32)
                unsaved = normalized.data_ptr(), rstd.data_ptr()
            cuda.spatial_reduction_forward(
                calls.reduction,
                cuda.Tokens(tokens.data_ptr(), tokens.stride(0), tokens.stride(1)),
                *(matrix.data_ptr(), *vectors, y.data_ptr(), *unsaved, address),
            )
        kv = F.linear(x if y is None else y, kv_weight, kv_bias)
        q = F.linear(x, q_weight, q_bias)
        o = x.new_empty(B, N, C)
        if save:
            lse = x.new_empty(B, self.heads, N, dtype=torch.float32)
            lse_address = lse.data_ptr()
        cuda.attention_forward(
            calls.attention, self._queries(q), *self._keys_values(kv), o.data_ptr(), lse_address
        )
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
        B, N, C = self.sizes
        calls = self._calls(x)
        dresult, rows = dresult.reshape(B * N, C), x.reshape(B * N, C)
        q = F.linear(rows, q_weight, q_bias)
        do = torch.mm(dresult, out_weight)
        dq, dkv = x.new_empty(B * N, C), x.new_empty(B * self.M, 2 * C)
        workspace = x.new_empty(calls.backward_bytes, dtype=torch.uint8)
        dk = dkv.data_ptr()
        cuda.attention_backward(
            calls.attention,
            *(self._queries(do), self._queries(q), *self._keys_values(kv), self._queries(o)),
            *(lse.data_ptr(), dq.data_ptr(), dk, dk + C * x.element_size(), 2 * C),
            workspace.data_ptr(),
        )
        del q, do
        dx = torch.mm(dq, q_weight)
        dreduction, inputs = (None,) * 4, rows
        if conv_weight is None:
            # added in the product itself
            dx.addmm_(dkv, kv_weight)
        else:
            dy, inputs = torch.mm(dkv, kv_weight), y.view(-1, C)
            if matrix is None:
                matrix = permuted(conv_weight, BY_PATCH, keep=False)
            tokens = x if self.fits and x.data_ptr() % 16 == 0 else aligned(x)
            gamma = aligned_contiguous(norm_weight)
            dweight = torch.empty_like(conv_weight, memory_format=self.weight_format)
            dreduction = (dweight, x.new_empty(C), gamma.new_empty(C), gamma.new_empty(C))
            cuda.spatial_reduction_backward(
                calls.reduction,
                dy.data_ptr(),
                cuda.Tokens(tokens.data_ptr(), tokens.stride(0), tokens.stride(1)),
                *(t.data_ptr() for t in (matrix, gamma, normalized, rstd, dx)),
                True,
                weight_gradient(dweight),
                *(t.data_ptr() for t in dreduction[1:]),
                workspace.data_ptr(),
            )
        return (
            *(dx.view(B, N, C), *dreduction),
            *(torch.mm(dq.t(), rows), None if q_bias is None else dq.sum(0)),
            *(torch.mm(dkv.t(), inputs), None if kv_bias is None else dkv.sum(0)),
            torch.mm(dresult.t(), o.view(B * N, C)),
            None if out_bias is None else dresult.sum(0),
        )

    def _calls(self, x: Tensor) -> _Calls:
        device, stream = device_and_stream(x)
        found = self._kept.get(stream)
        if found is None:
            found = self._new_calls(device, stream)
            self._kept.put(stream, found)
        return found

    def _new_calls(self, device: int, stream: int) -> _Calls:
        B, N, C = self.sizes
        where = {"device": device, "stream": stream}
        attention = cuda.Attention(
            B, N, self.M, self.heads, self.d, self.dtype, self.scale, **where
        )
        forward, backward = 0, cuda.attention_backward_workspace(attention)
        reduction = None
        if self.weight_format is not None:
            dtypes = self.dtype, self.norm_dtype
            reduction = cuda.SpatialReduction(B, *self.size, C, self.R, *dtypes, self.eps, **where)
            forward = cuda.spatial_reduction_forward_workspace(reduction)
            backward = max(backward, cuda.spatial_reduction_backward_workspace(reduction))
        return _Calls(attention, reduction, _padded(forward), backward)

    def _unsaved(self, address: int) -> list[int]:
        addresses = []
        for bytes_ in self.unsaved_bytes:
            addresses.append(address)
            address += bytes_
        return addresses

    def _queries(self, tensor: Tensor) -> cuda.Heads:
        _, N, C = self.sizes
        return cuda.Heads(tensor.data_ptr(), N * C, C, self.d)

    def _keys_values(self, kv: Tensor) -> tuple[cuda.Heads, cuda.Heads]:
        C, address = self.sizes[2], kv.data_ptr()
        strides = self.M * 2 * C, 2 * C, self.d
        values = address + C * kv.element_size()
        return cuda.Heads(address, *strides), cuda.Heads(values, *strides)


def _padded(bytes_: int) -> int:
    return -(-bytes_ // ALIGNMENT) * ALIGNMENT
