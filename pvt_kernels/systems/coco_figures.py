"""COCO's figures of a detector, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_convert

from pvt_kernels.systems.datasets.coco import CocoInstances
from pvt_kernels.systems.detection import Batch, DetectionRecipe, detect
from pvt_kernels.systems.training.distributed import compute_on_main

# what COCOeval.stats begins with
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_PREFIX = {"bbox": "box", "segm": "mask"}


class CocoFigures:
    """Average precision of boxes (`box_AP`, `box_AP50`, ...) and, where asked for, of masks.

    A figure that COCO leaves undefined, such as APl where no object is large, is left out.
    """

    def __init__(
        self,
        dataset: CocoInstances,
        device: torch.device,
        recipe: DetectionRecipe,
        masks: bool = False,
    ) -> None:
        self.dataset = dataset
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.results: list[dict[str, Any]] = []

    def update(self, model: nn.Module, batch: Batch) -> None:
        """See Evaluator."""
        images, targets = batch
        for target, answer in zip(targets, detect(model, images), strict=True):
            self.results += self._results(target["image_id"], answer)

    def compute(self) -> dict[str, float]:
        """See Evaluator: parts of 1."""
        return compute_on_main(self.results, self._figures)

    def _results(self, image_id: int, answer: dict[str, Tensor]) -> list[dict[str, Any]]:
        """COCO's form of one image's objects."""
        boxes = box_convert(answer["boxes"], "xyxy", "xywh")
        categories = [self.dataset.category_ids[label] for label in answer["labels"].tolist()]
        results = [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(
                categories, boxes.tolist(), answer["scores"].tolist(), strict=True
            )
        ]
        if "segm" in self.kinds:
            masks = (answer["masks"] > 0.5).cpu().numpy().astype(np.uint8)
            for result, mask in zip(results, masks, strict=True):
                result["segmentation"] = rle.encode(np.asfortranarray(mask))
        return results

    def _figures(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        figures = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for kind in self.kinds:
                evaluation = COCOeval(self.dataset.coco, self._index(results, kind), kind)
                evaluation.params.imgIds = self.dataset.image_ids
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                for name, value in zip(FIGURES, evaluation.stats, strict=False):
                    if value >= 0:
                        figures[f"{_PREFIX[kind]}_{name}"] = float(value)
        return figures

    def _index(self, results: Sequence[dict[str, Any]], kind: str) -> COCO:
        if not results:  # which loadRes does not take
            return COCO()
        # an object's area, by which COCO sorts it, is its mask's only where no box is given
        other = "bbox" if kind == "segm" else "segmentation"
        return self.dataset.coco.loadRes(
            [{key: value for key, value in result.items() if key != other} for result in results]
        )
