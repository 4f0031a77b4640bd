"""mmdet's SpatialReductionAttention and mmseg's EfficientMultiheadAttention.

Both keep the three input projections in one matrix of a torch.nn.MultiheadAttention, and add the
residual, `identity`, themselves: forward(x, (H, W), identity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pvt_kernels.integrations.adapter import Adapter, find
from pvt_kernels.integrations.structure import parts_at_call
from pvt_kernels.parts import Parts, are_plain, forward


def _parts(module: Any) -> Parts:
    attn = module.attn
    C = attn.embed_dim
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    return Parts(
        query=(weight[:C], None if bias is None else bias[:C]),
        keys_values=((weight[C:], None if bias is None else bias[C:]),),
        # whose forward torch.nn.MultiheadAttention does not call
        out=(attn.out_proj.weight, attn.out_proj.bias),
        heads=attn.num_heads,
        scale=attn.head_dim**-0.5,
        dropout_p=attn.dropout,
        conv=find(module, "sr"),
        norm=find(module, "norm"),
        bypassed=(attn, attn.out_proj),
        beside=(module.proj_drop, module.dropout_layer),
    )


def _forward(
    module: Any,
    original: Callable,
    x: Tensor,
    hw_shape: tuple[int, int],
    identity: Tensor | None = None,
) -> Tensor:
    own = parts_at_call(module, _parts)
    if own is None or _reasons(module):
        return original(x, hw_shape, identity)
    out = module.dropout_layer(module.proj_drop(forward(own, x, *hw_shape)))
    return (x if identity is None else identity) + out


def _reasons(module: Any) -> list[str]:
    attn = module.attn
    reasons = []
    if not module.batch_first or attn.batch_first:
        reasons.append("its tokens don't come batch first")
    if attn.bias_k is not None or attn.add_zero_attn:
        reasons.append("it has keys and values of its own: bias_k or add_zero_attn")
    if attn.in_proj_weight is None:
        reasons.append("its input projections are not one matrix: kdim or vdim")
    tensors = (attn.in_proj_weight, attn.in_proj_bias, attn.out_proj.weight, attn.out_proj.bias)
    if not are_plain(tensors):
        reasons.append("its projections are of a tensor subclass")
    return reasons


ADAPTER = Adapter(
    family="mmdet PVT, mmseg SegFormer",
    children=("attn", "attn.out_proj", "proj_drop", "dropout_layer"),
    signatures=(("x", "hw_shape"),),
    optional=("identity",),
    parts=_parts,
    forward=_forward,
    example=lambda module, tokens, H, W: (tokens, (H, W)),
    reasons=_reasons,
)
