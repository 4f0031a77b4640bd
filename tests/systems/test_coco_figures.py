"""COCO's figures on fixed answers equal pycocotools' on the same answers in its file format."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

from pvt_kernels.systems.coco_figures import FIGURES, CocoFigures
from pvt_kernels.systems.datasets.coco import CocoInstances


@pytest.fixture(scope="module")
def dataset(shapes_data):
    return CocoInstances(shapes_data["coco"], train=False, masks=True)


def imperfect_answers(dataset, seed=0):
    """Objects that are missed, moved, of another class, or not there, with random scores."""
    torch.manual_seed(seed)
    answers = []
    for image, target in dataset:
        kept = torch.rand(len(target["labels"])) < 0.8
        moved = torch.randint(-6, 7, (len(target["labels"]), 2))
        boxes = target["boxes"].as_subclass(torch.Tensor) + moved.repeat(1, 2)
        masks = [
            mask.roll((int(y), int(x)), (0, 1))
            for mask, (x, y) in zip(target["masks"].as_subclass(torch.Tensor), moved, strict=True)
        ]
        boxes = torch.cat([boxes[kept], torch.tensor([[5.0, 5.0, 40.0, 30.0]])])
        extra = torch.zeros(1, *image.shape[-2:], dtype=torch.uint8)
        extra[:, 5:30, 5:40] = 1
        masks = torch.cat([torch.stack(masks)[kept], extra])
        labels = torch.cat([target["labels"][kept], torch.tensor([0])])
        wrong = torch.rand(len(labels)) < 0.2
        labels = torch.where(wrong, (labels + 1) % len(dataset.classes), labels)
        scores = torch.rand(len(labels))
        answers.append({"boxes": boxes, "labels": labels, "scores": scores, "masks": 0.9 * masks})
    return answers


def figures(dataset, answers, masks=True, indices=None):
    """By CocoFigures, from a stub that answers in the dataset's order."""
    evaluator = CocoFigures(dataset, torch.device("cpu"), None, masks)
    for i in indices if indices is not None else range(len(dataset)):
        image, target = dataset[i]
        evaluator.update(lambda _, i=i: [answers[i]], ([image], [target]))
    return evaluator.compute()


def pycocotools_figures(dataset, answers, kind, path):
    results = []
    for image_id, answer in zip(dataset.image_ids, answers, strict=True):
        for box, label, score, mask in zip(*(answer[key] for key in (
                "boxes", "labels", "scores", "masks")), strict=True):  # fmt: skip
            x1, y1, x2, y2 = box.tolist()
            entry = {"image_id": image_id, "category_id": label.item() + 1, "score": score.item()}
            if kind == "bbox":
                entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                code = rle.encode(np.asfortranarray((mask.numpy() > 0.5).astype(np.uint8)))
                entry["segmentation"] = {**code, "counts": code["counts"].decode()}
            results.append(entry)
    path.write_text(json.dumps(results))
    evaluation = COCOeval(dataset.coco, dataset.coco.loadRes(str(path)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(FIGURES, evaluation.stats[:6].tolist(), strict=True))


def test_the_figures_are_pycocotools(dataset, tmp_path):
    answers = imperfect_answers(dataset)
    ours = figures(dataset, answers)
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        theirs = pycocotools_figures(dataset, answers, kind, tmp_path / "results.json")
        assert 0.1 < theirs["AP50"] < 0.9
        for name, value in theirs.items():
            if value < 0:  # undefined: no shape is as large as COCO's large objects
                assert name == "APl" and f"{prefix}_{name}" not in ours
            else:
                assert ours[f"{prefix}_{name}"] == value, name


def truth_of(dataset):
    return [{**target, "scores": torch.ones(len(target["labels"]))} for _, target in dataset]


def test_annotations_need_no_area(shapes_data, tmp_path):
    path = shutil.copytree(shapes_data["coco"], tmp_path / "coco") / "annotations"
    content = json.loads((path / "instances_val2017.json").read_text())
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    (path / "instances_val2017.json").write_text(json.dumps(content))
    bare = CocoInstances(path.parent, train=False, masks=True)
    assert set(figures(bare, truth_of(bare)).values()) == {1.0}


def test_the_truth_has_all_precision_and_silence_none(dataset):
    truth = truth_of(dataset)
    assert set(figures(dataset, truth).values()) == {1.0}
    nothing = [{key: value[:0] for key, value in answer.items() if key != "image_id"}
               for answer in truth]  # fmt: skip
    silent = figures(dataset, nothing, masks=False)
    assert set(silent.values()) == {0.0} and "mask_AP" not in silent


def _share(rank, dataset, answers, rendezvous, queue):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    queue.put((rank, figures(dataset, answers, indices=range(rank, len(dataset), 2))))
    dist.destroy_process_group()


def test_two_processes_share_the_images(dataset, tmp_path):
    answers = imperfect_answers(dataset)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    shares = [
        context.Process(target=_share, args=(rank, dataset, answers, tmp_path / "meet", queue))
        for rank in range(2)
    ]
    for share in shares:
        share.start()
    both = dict(queue.get(timeout=60) for _ in shares)
    for share in shares:
        share.join(timeout=60)
    assert both == {0: figures(dataset, answers), 1: figures(dataset, answers)}
