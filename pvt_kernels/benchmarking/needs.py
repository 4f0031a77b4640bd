"""How much memory a call needs beyond its weights and input, by the formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pvt_kernels.benchmarking.contenders import COMPILED, EAGER, NAIVE, PACKAGE
from pvt_kernels.benchmarking.shapes import STRIDE, FeedForwardShape, LayerShape, Size

# Matrices of all queries by all keys that exist at once: the logits and their softmax forward;
# the softmax, its gradient and the logits' gradient backward.
FORWARD_MATRICES = 2
BACKWARD_MATRICES = 3
# of a training machine or GPU, in which the largest image is to fit
TRAINING_MEMORY = 16 * 10**9
# q, o, their copies in another layout, and the output; backward, the gradients of these too
FORWARD_TOKEN_TENSORS = 4
BACKWARD_TOKEN_TENSORS = 9
# of this package's layer, which makes fewer copies
OWN_FORWARD_TOKEN_TENSORS = 2
OWN_BACKWARD_TOKEN_TENSORS = 5
# around one of a block's two halves: its input, what is normalised, and the sum
AROUND_TOKEN_TENSORS = 3
# of the tokens' width, that training keeps of a block, and of a stage beside its blocks
KEPT_TOKEN_TENSORS, OWN_KEPT_TOKEN_TENSORS = 6, 5
STAGE_TOKEN_TENSORS = 4


@dataclass(frozen=True)
class HiddenTensors:
    """How many tensors of a feed-forward network's hidden layer there are, where it exists as a
    whole: at once in a forward and in a backward, and kept for that."""

    forward: int
    backward: int
    kept: int


HIDDEN = {False: HiddenTensors(2, 3, 2), True: HiddenTensors(4, 6, 3)}


@dataclass(frozen=True)
class BlockShape:
    """One block of a backbone.

    Attributes:
        attention: its layer.
        hidden: its feed-forward network's hidden width; 0 where that never exists as a whole.
        convolved: whether that network has a convolution.
    """

    attention: LayerShape
    hidden: int
    convolved: bool


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
    if kind == PACKAGE:
        tensors = OWN_BACKWARD_TOKEN_TENSORS if backward else OWN_FORWARD_TOKEN_TENSORS
    else:
        tensors = BACKWARD_TOKEN_TENSORS if backward else FORWARD_TOKEN_TENSORS
    return matrices * matrix_bytes(kind, shape, dtype) + tensors * token_bytes(shape, dtype)


def feed_forward_growth(
    hidden: bool, shape: FeedForwardShape, dtype: torch.dtype, backward: bool
) -> int:
    """Bytes that one call of a feed-forward network needs beyond weights and input.

    `hidden`: whether its hidden layer exists as a whole.
    """
    count = HIDDEN[shape.convolved].backward if backward else HIDDEN[shape.convolved].forward
    width = count * shape.hidden * hidden + (1 + backward) * shape.dim
    gradients = 2 * shape.hidden * shape.dim if backward else 0
    return (shape.batch * shape.tokens * width + gradients) * dtype.itemsize


def largest_side(growth: Callable[[Size], int], memory: int) -> int:
    """Of the largest square image that fits: in multiples of the stride, 0 if none does."""
    side = 0
    while growth((side + STRIDE, side + STRIDE)) <= memory:
        side += STRIDE
    return side


def backbone_growth(
    kind: str, blocks: list[BlockShape], parameters: int, dtype: torch.dtype, backward: bool
) -> int:
    """Bytes that one call of a backbone needs beyond weights and input.

    A forward alone needs what its largest block does. Training keeps of every block the softmax,
    the hidden layer and some tensors of the tokens, and makes a gradient for every one of
    `parameters`; while one block is differentiated, those behind it are gone.
    """
    kept, peak = 0, 0
    stages = set()
    for block in blocks:
        shape, hidden = block.attention, HIDDEN[block.convolved]
        token = token_bytes(shape, dtype)
        layer = layer_growth(kind, shape, dtype, backward)
        of_hidden = block.hidden * token // shape.dim
        network = (hidden.backward - hidden.kept if backward else hidden.forward) * of_hidden
        if backward:
            tensors = OWN_KEPT_TOKEN_TENSORS if kind == PACKAGE else KEPT_TOKEN_TENSORS
            tensors += STAGE_TOKEN_TENSORS * (shape not in stages)
            kept += matrix_bytes(kind, shape, dtype) + hidden.kept * of_hidden + tensors * token
            stages.add(shape)
        peak = max(peak, kept + max(layer, network) + AROUND_TOKEN_TENSORS * token)
    return peak + (parameters * dtype.itemsize if backward else 0)
