"""DETR: transformers' encoder, decoder and matched losses on the last map of a PVT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert, clip_boxes_to_image
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
)

from pvt_kernels.systems import detection
from pvt_kernels.systems.coco_figures import CocoFigures
from pvt_kernels.systems.detection import DetectionRecipe
from pvt_kernels.systems.training.fields import Count, Dropout, Kind, Positive, Switch
from pvt_kernels.systems.training.schedules import MultiStep
from pvt_kernels.systems.training.system import System, create_backbone

# ImageNet's, by which torchvision's detectors normalise images too
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_HEADS = 8

Width = Annotated[int, Kind(f"a multiple of {_HEADS}", lambda n: n > 0 and n % _HEADS == 0)]


@dataclass(frozen=True, kw_only=True)
class DetrRecipe(DetectionRecipe):
    """A detection recipe with DETR's sizes.

    Attributes:
        channels: the transformer's width.
        layers: of the encoder, and of the decoder.
        queries: how many objects an image can have.
        feedforward: the hidden width of the transformer's MLPs.
        dropout: in the transformer.
        temperature: of the sines of positions; a lower one has more of them vary over small maps
            (Liu et al., DAB-DETR, ICLR 2022).
        contents: whether the decoder begins with a learned content for each query, and not with
            zeros, so that queries differ from the start.
    """

    channels: Width = 256
    layers: Count = 6
    queries: Count = 100
    feedforward: Count = 2048
    dropout: Dropout = 0.1
    temperature: Positive = 10_000.0
    contents: Switch = False


RECIPES = (
    DetrRecipe(
        name="50ep",
        summary="the paper's and the original code's; 2 images a GPU on 8 GPUs",
        epochs=50,
        schedule=MultiStep((33,), warmup_steps=0),
        backbone_rate=0.1,
        clip_norm=0.1,
        short_edges=tuple(range(640, 801, 32)),
        **detection.PAPER,
    ),
    DetrRecipe(
        epochs=40,
        evaluate_every=20,
        backbone_rate=0.1,
        layers=2,
        queries=8,
        feedforward=256,
        dropout=0.0,
        temperature=20.0,
        contents=True,
        **{
            **detection.SHAPES,
            "summary": "the generated data, in minutes on two CPU cores, from a classifier of it",
            "batch_size": 16,
            "micro_batch": 16,
            "clip_norm": 0.1,
            "short_edges": (128,),
            "channels": 128,
        },
    ),
)


class PvtConfig(PreTrainedConfig):
    """What transformers keeps of a backbone: its name, and the recipe it is made by."""

    model_type = "pvt_kernels"
    name: str = "pvt_small"
    recipe: Any = None


class PvtBackbone(PreTrainedModel):
    """A PVT as transformers' detectors take a backbone: images to a list of one map."""

    config_class = PvtConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PvtConfig) -> None:
        super().__init__(config)
        self.pyramid = create_backbone(config.name, config.recipe)
        self.channels = [self.pyramid.embed_dims[-1]]

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the PVT as it has initialised itself."""

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the last stage's map."""
        return self.pyramid(pixel_values)[-1:]


AutoBackbone.register(PvtConfig, PvtBackbone)


class InFloat32(nn.Sequential):
    """Runs what is in it without autocast: bfloat16 would round boxes by a pixel or two."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Detr(nn.Module):
    """transformers' DETR with the interface of torchvision's detectors."""

    def __init__(self, backbone: str, classes: int, recipe: DetrRecipe) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(recipe.short_edges, recipe.long_edge, _MEAN, _STD)
        config = DetrConfig(
            backbone_config=PvtConfig(name=backbone, recipe=recipe),
            num_labels=classes,
            num_queries=recipe.queries,
            d_model=recipe.channels,
            encoder_layers=recipe.layers,
            decoder_layers=recipe.layers,
            encoder_attention_heads=_HEADS,
            decoder_attention_heads=_HEADS,
            encoder_ffn_dim=recipe.feedforward,
            decoder_ffn_dim=recipe.feedforward,
            dropout=recipe.dropout,
            auxiliary_loss=True,
        )
        self.detr = DetrForObjectDetection(config)
        self.detr.model.position_embedding.temperature = recipe.temperature
        self.contents = nn.Embedding(recipe.queries, recipe.channels) if recipe.contents else None
        self._initialise()
        for head in ("class_labels_classifier", "bbox_predictor"):
            setattr(self.detr, head, InFloat32(getattr(self.detr, head)))

    def _initialise(self) -> None:
        """As DETR's authors do and not transformers, which expects weights to be loaded."""
        model = self.detr.model
        for part in (model.encoder, model.decoder):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.normal_(model.query_position_embeddings.weight)
        nn.init.xavier_uniform_(model.input_projection.weight)
        for head in (self.detr.class_labels_classifier, *self.detr.bbox_predictor.layers):
            head.reset_parameters()

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        """See pvt_kernels.systems.detection."""
        sizes = [tuple(image.shape[-2:]) for image in images]
        batch, targets = self.transform(images, targets)
        inside = batch.tensors.new_zeros(len(sizes), *batch.tensors.shape[-2:])
        for i, (height, width) in enumerate(batch.image_sizes):
            inside[i, :height, :width] = 1
        contents = None
        if self.contents is not None:
            contents = self.contents.weight.expand(len(sizes), -1, -1)
        if not self.training:
            outputs = self.detr(batch.tensors, inside, decoder_inputs_embeds=contents)
            return self._answers(outputs, sizes)
        labels = [
            {
                "class_labels": target["labels"],
                "boxes": box_convert(target["boxes"], "xyxy", "cxcywh")
                / target["boxes"].new_tensor([width, height, width, height]),
            }
            for target, (height, width) in zip(targets, batch.image_sizes, strict=True)
        ]
        outputs = self.detr(batch.tensors, inside, decoder_inputs_embeds=contents, labels=labels)
        return self._losses(outputs.loss_dict)

    def _losses(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each kind of loss, weighted and summed over the decoder's layers."""
        weights = {
            "loss_ce": 1,
            "loss_bbox": self.detr.config.bbox_loss_coefficient,
            "loss_giou": self.detr.config.giou_loss_coefficient,
        }
        return {
            kind: weight * sum(value for name, value in losses.items() if name.startswith(kind))
            for kind, weight in weights.items()
        }

    def _answers(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Each query's likeliest class and its box, surest first."""
        answers = []
        for logits, boxes, (height, width) in zip(
            outputs.logits, outputs.pred_boxes, sizes, strict=True
        ):
            scores, labels = logits.softmax(-1)[:, :-1].max(-1)
            order = scores.argsort(descending=True)
            corners = box_convert(boxes, "cxcywh", "xyxy")
            corners = corners * corners.new_tensor([width, height, width, height])
            answers.append(
                {
                    "boxes": clip_boxes_to_image(corners, (height, width))[order],
                    "labels": labels[order],
                    "scores": scores[order],
                }
            )
        return answers


def build(model: str, classes: Sequence[str], recipe: DetrRecipe) -> nn.Module:
    """DETR with the figures of its authors and of the original code."""
    return Detr(model, len(classes), recipe)


SYSTEM = System(
    name="detr",
    recipes=RECIPES,
    build=build,
    dataset=detection.dataset,
    evaluator=CocoFigures,
    **detection.PARTS,
)
