"""How much memory a call needs beyond its weights and input, by the formula."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pvt_kernels.benchmarking.contenders import COMPILED, EAGER, NAIVE
from pvt_kernels.benchmarking.shapes import LayerShape

# Matrices of all queries by all keys that exist at once: the logits and their softmax forward;
# the softmax, its gradient and the logits' gradient backward.
FORWARD_MATRICES = 2
BACKWARD_MATRICES = 3
# q, o, their copies in another layout, and the output; backward, the gradients of these too
FORWARD_TOKEN_TENSORS = 4
BACKWARD_TOKEN_TENSORS = 9


@dataclass(frozen=True)
class BlockShape:
    """One block of a backbone: its attention layer and its MLP's hidden width."""

    attention: LayerShape
    hidden: int


def matrix_bytes(kind: str, shape: LayerShape, dtype: torch.dtype) -> int:
    """One matrix of all queries by all keys, of a contender that makes one.

    The compiler may or may not find a fused form: it counts as making one.
    """
    if kind not in (NAIVE, EAGER, COMPILED):
        return 0
    keys = shape.queries if kind == NAIVE else shape.keys
    return shape.batch * shape.heads * shape.queries * keys * dtype.itemsize


def token_bytes(shape: LayerShape, dtype: torch.dtype) -> int:
    """One tensor (B, N, C)."""
    return shape.batch * shape.queries * shape.dim * dtype.itemsize


def layer_growth(kind: str, shape: LayerShape, dtype: torch.dtype, backward: bool) -> int:
    """Bytes that one call of a contender's layer needs beyond weights and input."""
    matrices = BACKWARD_MATRICES if backward else FORWARD_MATRICES
    tensors = BACKWARD_TOKEN_TENSORS if backward else FORWARD_TOKEN_TENSORS
    return matrices * matrix_bytes(kind, shape, dtype) + tensors * token_bytes(shape, dtype)


def backbone_growth(
    kind: str, blocks: list[BlockShape], parameters: int, dtype: torch.dtype, backward: bool
) -> int:
    """Bytes that one call of a backbone needs beyond weights and input.

    A forward alone needs what its largest block does. Training keeps of every block the softmax,
    two tensors of the MLP's hidden width and about eight of the tokens', and makes a gradient for
    every one of `parameters`.
    """
    kept, largest = 0, 0
    for block in blocks:
        shape = block.attention
        token = token_bytes(shape, dtype)
        mlp = 2 * block.hidden // shape.dim * token
        layer = layer_growth(kind, shape, dtype, backward)
        largest = max(largest, layer + 3 * token, mlp + 7 * token)
        kept += matrix_bytes(kind, shape, dtype) + mlp + 8 * token
    return largest + (kept + parameters * dtype.itemsize if backward else 0)
