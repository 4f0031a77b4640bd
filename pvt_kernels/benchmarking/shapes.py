"""The shapes of PVT's layers, and what they cost by the formula."""

from __future__ import annotations

from dataclasses import dataclass, replace

# (channels, heads, reduction ratio) of PVT-Tiny to PVT-Large, and the stage's stride
STAGES = {1: (64, 1, 8, 4), 2: (128, 2, 4, 8), 3: (320, 5, 2, 16), 4: (512, 8, 1, 32)}
# channels of the feed-forward's hidden layer, as a multiple of the tokens', in PVT and PVTv2
HIDDEN_RATIOS = {1: 8, 2: 8, 3: 4, 4: 4}
STRIDE = 32

Size = tuple[int, int]


@dataclass(frozen=True)
class LayerShape:
    """One attention layer on one feature map of height x width tokens."""

    dim: int
    heads: int
    sr_ratio: int
    height: int
    width: int
    batch: int = 1

    @property
    def queries(self) -> int:
        """N, the number of tokens."""
        return self.height * self.width

    @property
    def keys(self) -> int:
        """M, the number of tokens after the reduction."""
        return (self.height // self.sr_ratio) * (self.width // self.sr_ratio)

    @property
    def unreduced(self) -> LayerShape:
        """The same layer without spatial reduction: plain multi-head attention."""
        return replace(self, sr_ratio=1)

    def flops(self, backward: bool) -> int:
        """Floating-point operations of the matrix products and the convolution.

        The backward counts twice the forward; whatever an implementation recomputes is not
        work that the layer asks for, and is not counted.
        """
        n, m, c, r = self.queries, self.keys, self.dim, self.sr_ratio
        projections = 4 * n * c * c + 4 * m * c * c
        reduction = 2 * m * r * r * c * c if r > 1 else 0
        around = self.batch * (projections + reduction) * (3 if backward else 1)
        return self.core_flops(backward) + around

    def core_flops(self, backward: bool) -> int:
        """Those of the attention alone: two products forward, and twice that backward."""
        forward = 4 * self.batch * self.queries * self.keys * self.dim
        return forward * (3 if backward else 1)


@dataclass(frozen=True)
class FeedForwardShape:
    """One feed-forward network on one feature map of height x width tokens.

    `convolved`: whether it has PVTv2's depthwise convolution.
    """

    dim: int
    hidden: int
    convolved: bool
    height: int
    width: int
    batch: int = 1

    @property
    def tokens(self) -> int:
        """N."""
        return self.height * self.width

    def flops(self, backward: bool) -> int:
        """Those of the layers; the backward counts twice the forward, as an attention layer's."""
        taps = 9 if self.convolved else 0
        forward = 2 * self.batch * self.tokens * self.hidden * (2 * self.dim + taps)
        return forward * (3 if backward else 1)


def feed_forward_shape(stage: int, convolved: bool, size: Size, batch: int = 1) -> FeedForwardShape:
    """Those of a stage (1 to 4) of PVT, or of PVTv2, for images of size (height, width)."""
    dim, _, _, stride = STAGES[stage]
    hidden = HIDDEN_RATIOS[stage] * dim
    return FeedForwardShape(dim, hidden, convolved, size[0] // stride, size[1] // stride, batch)


def stage_shape(stage: int, size: Size, batch: int = 1) -> LayerShape:
    """The layers of a PVT stage (1 to 4) for images of size (height, width)."""
    dim, heads, sr_ratio, stride = STAGES[stage]
    return LayerShape(dim, heads, sr_ratio, size[0] // stride, size[1] // stride, batch)


def parse_size(text: str) -> Size:
    """(height, width) of a text such as 800x1216.

    Raises:
        ValueError: not of that form, or not multiples of the backbone's stride.
    """
    parts = text.lower().split("x")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        height, width = int(parts[0]), int(parts[1])
        if min(height, width) > 0 and height % STRIDE == 0 and width % STRIDE == 0:
            return height, width
    raise ValueError(
        f"size: given {text!r}, accepted HEIGHTxWIDTH in multiples of {STRIDE}, such as 800x1216"
    )


def format_size(size: Size) -> str:
    """800x1216 of (800, 1216)."""
    return f"{size[0]}x{size[1]}"
