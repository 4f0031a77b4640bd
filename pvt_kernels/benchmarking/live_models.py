"""Other libraries' models as they are before and after patch(), with random weights.

Every dropout is 0, so that all contenders compute the same in training too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvt_kernels.benchmarking.contenders import (
    COMPILED,
    EAGER,
    PACKAGE,
    SDPA,
    UNPATCHED,
    Contender,
)
from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.needs import BlockShape, backbone_growth
from pvt_kernels.benchmarking.shapes import STAGES, LayerShape, Size
from pvt_kernels.integrations import patch

# of images, from which on an unpatched model is compiled too: it takes a minute
LEAST_COMPILED_PIXELS = 800 * 800
# of the SegFormers and of pvt_v2, as of PVT
HEADS = (1, 2, 5, 8)
SR_RATIOS = (8, 4, 2, 1)
WIDTHS = tuple(dim for dim, *_ in STAGES.values())


@dataclass(frozen=True)
class LiveModel:
    """A model of another library.

    Attributes:
        build: makes it for an image size; its result is a tensor, or has one as `output`.
        output: the attribute of its result; None if that is the tensor.
        cores: EAGER, SDPA or both: how its attention is computed without a patch.
        widths, depths, mlp_ratios: of its four stages.
        convolved: whether the feed-forward networks have a convolution.
        head_width: channels of a decode head at the largest map, 0 if there is none.
        training_check_size: at which gradients of larger images are checked, since the fp64
            oracle would not fit; None if the model has one size.
    """

    build: Callable[[Size], nn.Module]
    output: str | None
    cores: tuple[str, ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    convolved: bool
    head_width: int = 0
    training_check_size: Size | None = None

    def contenders(self, size: Size) -> list[Contender]:
        """Unpatched in every way that the library has, and patched."""
        large = size[0] * size[1] >= LEAST_COMPILED_PIXELS
        kinds = (*self.cores, COMPILED) if large else self.cores
        return [*(c for c in UNPATCHED if c.kind in kinds), Contender("patched", PACKAGE)]

    def growth(
        self,
        kind: str,
        hidden: bool,
        size: Size,
        batch: int,
        dtype: torch.dtype,
        parameters: int,
        backward: bool,
    ) -> int:
        """Bytes that a call needs beyond weights and input, by the formula.

        `hidden`: whether the hidden layers of the feed-forward networks exist as a whole.
        """
        blocks = [
            BlockShape(
                LayerShape(C, heads, R, size[0] // stride, size[1] // stride, batch),
                ratio * C if hidden else 0,
                self.convolved,
            )
            for C, heads, R, stride, depth, ratio in zip(
                self.widths, HEADS, SR_RATIOS, (4, 8, 16, 32), self.depths, self.mlp_ratios,
                strict=True,
            )
            for _ in range(depth)
        ]  # fmt: skip
        # the four maps, side by side as well, and what follows; backward, their gradients. Patched,
        # their sum alone and what follows, of which inference on a CPU has no map as a whole
        kept = (12, 9) if hidden else (5, 1)
        maps = (kept[0] if backward else kept[1]) * self.head_width
        head = batch * maps * (size[0] // 4) * (size[1] // 4) * dtype.itemsize
        return backbone_growth(kind, blocks, parameters, dtype, backward) + head


class Output(nn.Module):
    """A model whose result is the one tensor that is compared."""

    def __init__(self, model: nn.Module, output: str | None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Tensor:
        result = self.model(x)
        return result if self.output is None else getattr(result, self.output)


def use_core(model: nn.Module, kind: str) -> None:
    """Compute the attention of an unpatched model by EAGER or SDPA, if it has the choice."""
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(kind)
    for module in model.modules():
        # timm's switch
        if hasattr(module, "fused_attn"):
            module.fused_attn = kind == SDPA


@contextmanager
def smooth_activations(model: nn.Module) -> Iterator[None]:
    """Within it the model has GELU where it had ReLU."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU)
    ]
    for parent, name, _ in found:
        setattr(parent, name, nn.GELU())
    try:
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)


def contender_model(model: nn.Module, contender: Contender) -> nn.Module:
    """The model as the contender has it; it is changed itself."""
    if contender.kind == PACKAGE:
        patch(model)
        return model
    if contender.kind == COMPILED:
        use_core(model, SDPA)
        return torch.compile(model, dynamic=False)
    use_core(model, contender.kind)
    return model


def _segformer(depths: tuple[int, ...], widths: tuple[int, ...], head: int) -> LiveModel:
    def build(size: Size) -> nn.Module:
        transformers = require("transformers")
        config = transformers.SegformerConfig(
            depths=depths, hidden_sizes=widths, decoder_hidden_size=head, num_labels=150,
            hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0,
        )  # fmt: skip
        return transformers.SegformerForSemanticSegmentation(config)

    return LiveModel(
        build, "logits", (EAGER, SDPA), widths, depths, (4, 4, 4, 4), True, head, (512, 512)
    )


def _timm(
    name: str,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    mlp_ratios: tuple[int, ...],
    convolved: bool,
) -> LiveModel:
    def build(size: Size) -> nn.Module:
        return require("timm").create_model(name)

    return LiveModel(build, None, (EAGER, SDPA), widths, depths, mlp_ratios, convolved)


def _transformers_pvt(size: Size) -> nn.Module:
    """Pvt-tiny, with position embeddings for the size: the model does not resize its own."""
    transformers = require("transformers")
    config = transformers.PvtConfig(hidden_dropout_prob=0.0, drop_path_rate=0.0)
    model = transformers.PvtModel(config)
    for stride, embeddings in zip((4, 8, 16, 32), model.encoder.patch_embeddings, strict=True):
        tokens = (size[0] // stride) * (size[1] // stride) + (embeddings.cls_token is not None)
        channels = embeddings.position_embeddings.shape[-1]
        embeddings.position_embeddings = nn.Parameter(torch.randn(1, tokens, channels))
    return model


LIVE_MODELS = {
    "segformer_b0": _segformer((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "segformer_b2": _segformer((3, 4, 6, 3), WIDTHS, 768),
    "timm_pvt_v2_b0": _timm("pvt_v2_b0", (32, 64, 160, 256), (2, 2, 2, 2), (8, 8, 4, 4), True),
    "timm_pvt_v2_b2": _timm("pvt_v2_b2", WIDTHS, (3, 4, 6, 3), (8, 8, 4, 4), True),
    "timm_twins_svt_small": _timm(
        "twins_svt_small", (64, 128, 256, 512), (2, 2, 10, 4), (4,) * 4, False
    ),
    "transformers_pvt": LiveModel(
        _transformers_pvt, "last_hidden_state", (EAGER,), WIDTHS, (2, 2, 2, 2), (8, 8, 4, 4), False
    ),
}
