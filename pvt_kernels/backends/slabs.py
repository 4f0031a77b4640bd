"""The feed-forward network a slab of the map at a time, so that its hidden layer stays in L2.

The products are PyTorch's; what lies between them is a backend's own, as `Kernels` has it. For the
convolution a slab takes rows of its neighbours along: their hidden channels are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# of L2 to the hidden layer of a slab; the rest is for tokens, weights and what follows
L2_SHARE = 0.5
# of a product's usual tile, 128 x 128, in a slab for each multiprocessor: fewer would leave some
# without work, whatever stays in L2
TILE, LEAST_TILES = 128, 2
# what the hidden channels of a token are padded to, so that each begins at 16 bytes
UNIT = 8
# sums over tokens that a backward has: of the convolution's weight and bias, and of fc1's bias
TAPS = 9
CONV_SUMS, PLAIN_SUMS = TAPS + 2, 1


class Window(NamedTuple):
    """The rows of each image that a kernel computes, contiguous.

    Its input has `before` more rows above these and `after` below; beyond that is the map's edge.
    """

    images: int
    rows: int
    width: int
    before: int = 0
    after: int = 0

    @property
    def tokens(self) -> int:
        return self.images * self.rows * self.width


class Kernels(Protocol):
    """Of one call: its hidden channels, dtype, convolution and activation are known.

    Hidden channels of tokens are (tokens, D), with rows that are padded to UNIT. Sums are in fp32,
    (parts, CONV_SUMS or PLAIN_SUMS, D padded to UNIT), each part of which one block adds to.
    """

    def forward(self, window: Window, h: Tensor, a: Tensor) -> None:
        """a of the window from h: the convolution with what is around it."""

    def parts(self, window: Window) -> int:
        """How many parts the sums over such a window have."""
        ...

    def dc(
        self,
        window: Window,
        above: int,
        below: int,
        h: Tensor,
        dc: Tensor,
        a: Tensor,
        sums: Tensor,
    ) -> None:
        """dc of the window in place of da; a, and sums but for the last, of all but its first rows
        and last rows, so many of which are other slabs'. Without a convolution a lies in h's place
        and there is only the last of the sums, that of dc."""

    def dh(self, window: Window, dc: Tensor, h: Tensor, sums: Tensor) -> None:
        """dh of the window in place of h, from dc with what is around it, and the last sum."""


class Slab(NamedTuple):
    """Rows of one image, or all rows of some."""

    first_image: int
    images: int
    first_row: int
    rows: int
    height: int
    width: int

    def range(self, halo: int) -> tuple[int, int]:
        """The first of its rows, and the first behind it, with up to `halo` neighbours."""
        return max(self.first_row - halo, 0), min(self.first_row + self.rows + halo, self.height)

    def of(self, tensor: Tensor, halo: int = 0) -> Tensor:
        """Its tokens (tokens, channels) of (B, N, channels)."""
        begin, stop = self.range(halo)
        images = tensor[self.first_image : self.first_image + self.images]
        return images[:, begin * self.width : stop * self.width].flatten(0, 1)

    def window(self, halo: int, around: int) -> Window:
        """Its rows with `halo` neighbours, of an input that has `around` more."""
        begin, stop = self.range(halo)
        first, end = self.range(halo + around)
        return Window(self.images, stop - begin, self.width, begin - first, end - stop)


# of fc1's weight, the convolution's weight and bias, the activation, and whether a ReLU precedes
MakeKernels = Callable[[Tensor, Tensor | None, Tensor | None, str, bool], Kernels]


def forward(
    make_kernels: MakeKernels,
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    relu_before_conv: bool,
) -> Tensor:
    """The result, as feed_forward_forward has it."""
    kernels = make_kernels(fc1_weight, dw_weight, dw_bias, activation, relu_before_conv)
    convolved = dw_weight is not None
    halo = int(convolved)
    slabs = _slabs(x, H, W, fc1_weight, convolved, buffers=1 + halo)
    result = x.new_empty(x.shape)
    hidden = _buffer(x, fc1_weight, slabs, halo)
    activated = _buffer(x, fc1_weight, slabs, 0) if convolved else hidden
    for slab in slabs:
        h = _linear(slab.of(x, halo), fc1_weight, fc1_bias, hidden)
        a = activated[: slab.window(0, 0).tokens]
        if convolved:
            kernels.forward(slab.window(0, halo), h, a)
        elif activation == "gelu":
            F.gelu(h, out=a)  # pyright: ignore[reportCallIssue]  # which its stub lacks
        else:
            a.relu_()
        _linear(a, fc2_weight, fc2_bias, slab.of(result))
    return result


def backward(
    make_kernels: MakeKernels,
    dresult: Tensor,
    x: Tensor,
    H: int,
    W: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    relu_before_conv: bool,
) -> tuple[Tensor, ...]:
    """The gradients, as feed_forward_backward has them."""
    kernels = make_kernels(fc1_weight, dw_weight, dw_bias, activation, relu_before_conv)
    dtype, D = x.dtype, len(fc1_weight)
    convolved = dw_weight is not None
    halo = int(convolved)
    slabs = _slabs(x, H, W, fc1_weight, convolved, buffers=2 + halo)
    hidden = _buffer(x, fc1_weight, slabs, 2 * halo)
    gradient = _buffer(x, fc1_weight, slabs, halo)
    activated = _buffer(x, fc1_weight, slabs, 0) if convolved else hidden
    windows = [slab.window(near, 0) for slab in slabs for near in range(halo + 1)]
    parts = max(map(kernels.parts, windows), default=1)
    count = CONV_SUMS if convolved else PLAIN_SUMS
    sums = x.new_zeros(parts, count, padded(D), dtype=torch.float32)
    dx = x.new_empty(x.shape)
    dfc1, dfc2 = _Sum(), _Sum()
    for slab in slabs:
        (first, end), (begin, stop) = slab.range(0), slab.range(halo)
        own = slab.window(0, halo)
        dy = slab.of(dresult)
        h = _linear(slab.of(x, 2 * halo), fc1_weight, fc1_bias, hidden)
        dc = gradient[: slab.window(halo, 0).tokens]
        torch.mm(slab.of(dresult, halo), fc2_weight, out=dc)
        a = activated[: own.tokens]
        kernels.dc(slab.window(halo, halo), first - begin, stop - end, h, dc, a, sums)
        dfc2.add(dy, a)
        dh = dc
        if convolved:
            before = (first - slab.range(2)[0]) * slab.width
            dh = h[before : before + own.tokens]
            kernels.dh(own, dc, dh, sums)
        torch.mm(dh, fc1_weight, out=slab.of(dx))
        dfc1.add(dh, slab.of(x))
    # of all parts, in one order
    totals = sums.sum(0)[:, :D]
    conv_gradients = x.new_empty(0), x.new_empty(0)
    if convolved:
        dconv = totals[:TAPS].t().contiguous().to(dtype)
        conv_gradients = dconv.view(D, 1, 3, 3), totals[TAPS].to(dtype, copy=True)
    return (
        dx,
        *(dfc1.of(fc1_weight), totals[-1].to(dtype, copy=True)),
        *conv_gradients,
        *(dfc2.of(fc2_weight), dresult.sum((0, 1), dtype=torch.float32).to(dtype)),
    )


class _Sum:
    """Of the slabs' gradients of a weight: more than one in fp32, since each is rounded."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, gradients: Tensor, inputs: Tensor) -> None:
        """The gradients of a linear layer's results, and its inputs."""
        product = gradients.t() @ inputs
        self._total = product if self._total is None else self._total.float().add_(product)

    def of(self, weight: Tensor) -> Tensor:
        """In the weight's dtype; zeros where there were no slabs."""
        if self._total is None:
            return weight.new_zeros(weight.shape)
        return self._total.to(weight.dtype)


def slab_tokens(device: torch.device, hidden: int, itemsize: int, buffers: int) -> int:
    """How many tokens a slab has, of as many hidden channels, in `buffers` at once."""
    return fitting_tokens(*_caches(device), hidden, itemsize, buffers)


def fitting_tokens(
    l2_bytes: int, multiprocessors: int, hidden: int, itemsize: int, buffers: int
) -> int:
    """So many as fit into L2, but no fewer than fill the multiprocessors."""
    in_l2 = int(L2_SHARE * l2_bytes) // (buffers * padded(hidden) * itemsize)
    filling = LEAST_TILES * multiprocessors * TILE * TILE // hidden
    return max(in_l2, filling, 1)


@lru_cache
def _caches(device: torch.device) -> tuple[int, int]:
    """Bytes of L2, and how many multiprocessors."""
    if device.type != "cuda":
        # for tests, which run the kernels on the CPU
        return 2**22, 1
    properties = torch.cuda.get_device_properties(device)
    return properties.L2_cache_size, properties.multi_processor_count


def _slabs(
    x: Tensor, H: int, W: int, fc1_weight: Tensor, convolved: bool, buffers: int
) -> list[Slab]:
    """Of equal sizes, as far as that is possible."""
    B, N, _ = x.shape
    D = len(fc1_weight)
    if not convolved:
        H, W = N, 1
    return list(divided(B, H, W, slab_tokens(x.device, D, x.element_size(), buffers)))


def divided(B: int, H: int, W: int, tokens: int) -> Iterator[Slab]:
    """Slabs of up to so many tokens, or one row: of whole images where these have no more."""
    if tokens >= H * W:
        images = _part(B, tokens // (H * W))
        for image in range(0, B, images):
            yield Slab(image, min(images, B - image), 0, H, H, W)
        return
    rows = _part(H, max(1, tokens // W))
    for image in range(B):
        for row in range(0, H, rows):
            yield Slab(image, 1, row, min(rows, H - row), H, W)


def _part(size: int, most: int) -> int:
    """Up to `most`, so that few parts of nearly the same size make up `size`."""
    parts = max(1, -(-size // most))
    return max(1, -(-size // parts))


def _buffer(x: Tensor, fc1_weight: Tensor, slabs: list[Slab], halo: int) -> Tensor:
    """(tokens, D) for the hidden layer of any of the slabs."""
    D = len(fc1_weight)
    tokens = max((slab.window(halo, 0).tokens for slab in slabs), default=0)
    return x.new_empty(tokens, padded(D))[:, :D]


def padded(hidden: int) -> int:
    return -(-hidden // UNIT) * UNIT


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The first rows of `out`, into which it is written."""
    out = out[: len(x)]
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)
