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


def layer_with_gradients(
    dim: int, heads: int, sr_ratio: int, H: int, W: int, offset: int | None = None
) -> list[Tensor]:
    """The output of a layer on random tokens, and the gradients of all that it depends on.

    With an `offset` the channels are those from there on of half as many again.
    """
    torch.manual_seed(0)
    layer = SRAttention(dim, heads, qkv_bias=True, sr_ratio=sr_ratio)
    x = torch.randn(2, H * W, dim)
    if offset is not None:
        x = torch.randn(2, H * W, dim + 8)[:, :, offset : offset + dim]
    x.requires_grad_()
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
    sizes = batch, queries, keys, heads, head_dim, dtype, 1.0, 0
    strides = heads * head_dim, head_dim, head_dim
    plan = _C.cuda.plan_attention_backward(sizes, *[strides] * 5, dkv_stride=heads * head_dim)
    delta = math.ceil(batch * heads * queries / 4) * 4
    partials = plan.workspace / 4 - delta
    if dtype == "float32":
        # the numbers by which blocks tell how far they are, which take less than a split does
        partials -= partials % (2 * batch * keys * heads * head_dim)
    return partials / (2 * batch * keys * heads * head_dim)


def attention_at(q_offset: int, o_offset: int) -> None:
    """A forward whose q and o begin so many bytes after a multiple of 16."""
    plan, (q, *others, o, lse, workspace) = _tiny_attention()
    plan.launch(0, [q + q_offset, *others, o + o_offset, lse, workspace])


def attention_without_workspace() -> None:
    """Of whose addresses one is missing, though nothing lies there."""
    plan, addresses = _tiny_attention()
    plan.launch(0, addresses[:-1])


def _tiny_attention() -> tuple[_C.cuda.Plan, list[int]]:
    """A forward's plan and addresses."""
    strides = 32, 8, 8
    plan = _C.cuda.plan_attention_forward((1, 4, 4, 1, 8, "float32", 1.0, 0), *[strides] * 3, True)
    memory = torch.zeros(5, 64)
    return plan, [*(t.data_ptr() for t in memory), 0]


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
