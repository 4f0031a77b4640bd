"""What the worker is asked to run, by dotted names."""

from __future__ import annotations

import math
import os
import sys

import torch
from torch import Tensor

import pvt_kernels
from pvt_kernels import _C, SRAttention
from pvt_kernels.backends import slabs
from pvt_kernels.backends.cuda import feed_forward

PACKAGE = os.path.dirname(pvt_kernels.__file__) + os.sep


def layer_with_gradients(dim: int, heads: int, sr_ratio: int, H: int, W: int) -> list[Tensor]:
    """The output of a layer on random tokens, and the gradients of all that it depends on."""
    torch.manual_seed(0)
    layer = SRAttention(dim, heads, qkv_bias=True, sr_ratio=sr_ratio)
    x = torch.randn(2, H * W, dim, requires_grad=True)
    out = layer(x, H, W)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])]


def calls_of_a_layer(dim: int, heads: int, sr_ratio: int, backward: bool) -> int:
    """How many of the package's Python functions a layer of this form calls, and a step of it."""
    layer = SRAttention(dim, heads, qkv_bias=True, sr_ratio=sr_ratio).half()
    x = torch.randn(1, (2 * sr_ratio) ** 2, dim).half().requires_grad_(backward)
    calls = 0

    def profile(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    sys.setprofile(profile)
    try:
        with torch.set_grad_enabled(backward):
            out = layer(x, 2 * sr_ratio, 2 * sr_ratio)
        if backward:
            out.backward(out.detach())
    finally:
        sys.setprofile(None)
    return calls


def dk_dv_splits(
    batch: int, queries: int, keys: int, heads: int, head_dim: int, dtype: str
) -> float:
    """For which there is room in the workspace, on the device that the worker has."""
    call = _C.cuda.Attention(
        batch, queries, keys, heads, head_dim, dtype, scale=1.0, device=0, stream=0
    )
    delta = math.ceil(batch * heads * queries / 4) * 4
    partials = _C.cuda.attention_backward_workspace(call) / 4 - delta
    if dtype == "float32":
        # the numbers by which blocks tell how far they are, which take less than a split does
        partials -= partials % (2 * batch * keys * heads * head_dim)
    return partials / (2 * batch * keys * heads * head_dim)


def attention_at(q_offset: int, o_offset: int) -> None:
    """A forward whose q and o begin so many bytes after a multiple of 16."""
    memory = torch.zeros(4, 64)
    q, k, v, o = (t.data_ptr() for t in memory)
    call = _C.cuda.Attention(1, 4, 4, 1, 8, "float32", scale=1.0, device=0, stream=0)
    heads = [_C.cuda.Heads(address, 32, 8, 8) for address in (q + q_offset, k, v)]
    _C.cuda.attention_forward(call, *heads, o + o_offset, memory[3, 32:].data_ptr())


def feed_forward_in_slabs(direction: str, tokens: int, *arguments: object) -> object:
    """The feed-forward's `direction` with slabs of so many tokens."""
    fitting = slabs.slab_tokens
    slabs.slab_tokens = lambda *_: tokens
    try:
        # the operators run it so: what comes by pickle may require gradients
        with torch.no_grad():
            return getattr(feed_forward, direction)(*arguments)
    finally:
        slabs.slab_tokens = fitting
