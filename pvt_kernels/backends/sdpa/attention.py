"""Attention through torch.nn.functional.scaled_dot_product_attention."""

import torch.nn.functional as F
from torch import Tensor

from pvt_kernels.backends import transforms


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout_p: float) -> Tensor:
    """Shapes as the op has them."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if transforms.transform():
        # PyTorch's fused kernels have neither forward-mode nor second derivatives
        weights = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        o = F.dropout(weights, dropout_p) @ v
    else:
        o = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale)
    return o.transpose(1, 2)
