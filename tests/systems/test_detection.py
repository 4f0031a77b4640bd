"""The detectors: recipes, data, size, losses, gradients, answers and precision."""

import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pvt_kernels import systems
from pvt_kernels.systems import detection
from pvt_kernels.systems.training.optimizer import make_optimizer
from pvt_kernels.systems.training.recipe import find
from pvt_kernels.systems.training.schedules import MultiStep

DETECTORS = ("retinanet", "mask_rcnn", "detr")
# millions of parameters in tables 3 and 4 of the paper, with COCO's 80 classes
PAPER_SIZES = {
    "retinanet": {"pvt_tiny": 23.0, "pvt_small": 34.2, "pvt_medium": 53.9, "pvt_large": 71.1},
    "mask_rcnn": {"pvt_tiny": 32.9, "pvt_small": 44.1, "pvt_medium": 63.9, "pvt_large": 81.0},
}


@pytest.fixture(params=DETECTORS)
def system(request):
    return systems.load(request.param)


@pytest.fixture
def shapes(system):
    return find(system.recipes, "shapes", None)


@pytest.fixture
def batch(system, shapes, shapes_data):
    data = system.dataset(shapes_data["coco"], shapes, True)
    return system.collate([data[0], data[1]])


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_the_recipes_are_the_papers(name):
    once, thrice = systems.load(name).recipes[:2]
    for recipe in (once, thrice):
        assert (recipe.batch_size, recipe.micro_batch, recipe.learning_rate) == (16, 2, 1e-4)
        assert recipe.weight_decay == 1e-4 and recipe.model == "pvt_small"
        assert recipe.long_edge == 1333 and recipe.short_edges[-1] == 800
    assert (once.name, once.epochs, once.schedule) == ("1x", 12, MultiStep((8, 11)))
    assert (thrice.name, thrice.epochs, thrice.schedule) == ("3x", 36, MultiStep((27, 33)))
    assert once.short_edges == (800,) and thrice.short_edges == tuple(range(640, 801))


def test_detrs_recipe_is_the_papers():
    recipe = systems.load("detr").recipes[0]
    assert (recipe.epochs, recipe.schedule) == (50, MultiStep((33,), warmup_steps=0))
    assert (recipe.batch_size, recipe.learning_rate, recipe.backbone_rate) == (16, 1e-4, 0.1)
    assert (recipe.layers, recipe.queries, recipe.channels) == (6, 100, 256)
    assert recipe.temperature == 10_000 and not recipe.contents
    assert recipe.flip == 0.5 and len(recipe.short_edges) > 1


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_the_models_are_as_large_as_the_papers(name):
    system = systems.load(name)
    for model, millions in PAPER_SIZES[name].items():
        with torch.device("meta"):
            detector = system.build(model, [str(i) for i in range(80)], system.recipes[0])
        count = sum(parameter.numel() for parameter in detector.parameters())
        assert round(count / 1e6, 1) == millions


def test_training_images_are_flipped_with_their_boxes(system, shapes, shapes_data):
    root = shapes_data["coco"]
    plain, flipped = (
        system.dataset(root, replace(shapes, flip=flip), True)[0] for flip in (0.0, 1.0)
    )
    image, target = flipped
    assert torch.equal(image, plain[0].flip(-1)) and image.dtype == torch.uint8
    width = image.shape[-1]
    expected = plain[1]["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
    assert torch.allclose(target["boxes"], expected + torch.tensor([width, 0, width, 0]))
    # an image to test is neither flipped nor resized here
    tests = system.dataset(root, replace(shapes, flip=1.0), False)
    assert torch.equal(tests[0][0], tests[0][0]) and "masks" not in tests[0][1]


def test_images_are_resized_by_the_recipe(system, shapes):
    recipe = replace(shapes, short_edges=(64, 96, 128), long_edge=160)
    transform = system.build("pvt_v2_b0", ["a", "b"], recipe).transform
    target = {"boxes": torch.tensor([[10.0, 20.0, 50.0, 40.0]])}
    seen = set()
    for _ in range(12):
        batch, targets = transform.train()([torch.zeros(3, 80, 80)], [target])
        seen |= set(batch.image_sizes)
        expected = target["boxes"] * batch.image_sizes[0][0] / 80
        assert torch.allclose(targets[0]["boxes"], expected)
    assert seen == {(64, 64), (96, 96), (128, 128)}
    # to test, the shorter edge is the last, but for the longer's limit; padded to 32 pixels
    transform.eval()
    for size, resized, padded in (
        ((80, 80), (128, 128), (128, 128)),
        ((80, 90), (128, 144), (128, 160)),
        ((100, 400), (40, 160), (64, 160)),
    ):
        batch, _ = transform([torch.zeros(3, *size)])
        assert batch.image_sizes == [resized] and batch.tensors.shape[-2:] == padded


def test_every_parameter_gets_a_gradient(system, shapes, batch):
    backbones = {"retinanet": "pvt_tiny", "mask_rcnn": "pvt_v2_b2_linear", "detr": "pvt_v2_b0"}
    model = system.build(backbones[system.name], [str(i) for i in range(6)], shapes).train()
    losses = system.loss(model, batch, shapes)
    assert all(value.isfinite() and value.requires_grad for value in losses.values())
    sum(losses.values()).backward()
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not missing


def test_answers_are_in_the_images_own_pixels(system, shapes):
    """An untrained detector that is sure of everything still answers inside the image."""
    model = system.build("pvt_v2_b0", ["a", "b"], replace(shapes, short_edges=(64,))).eval()
    trust_everything(model)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((100, 150), (90, 60))
    ]
    with torch.no_grad():
        answers = detection.detect(model, images)
    for image, answer in zip(images, answers, strict=True):
        height, width = image.shape[-2:]
        count = len(answer["labels"])
        assert 0 < count <= 100 and answer["boxes"].shape == (count, 4)
        assert set(answer["labels"].tolist()) <= {0, 1}
        assert answer["boxes"].min() >= 0 and (answer["boxes"] <= torch.tensor(
            [width, height, width, height]).add(1e-3)).all()  # fmt: skip
        assert answer["boxes"][:, 2].max() > 0.6 * width
        assert (answer["scores"].diff() <= 0).all()
        if "masks" in answer:
            assert answer["masks"].shape == (count, height, width)
    answer = system.answer(model, Image.new("RGB", (200, 100)), ["a", "b"], shapes)
    assert answer.picture.size == (320, 160)
    line = r" *\d+\.\d%  [ab]  at \d+ \d+ \d+ \d+|no object with a score above 30%"
    assert answer.lines and all(re.fullmatch(line, text) for text in answer.lines)


def trust_everything(model):
    for holder in (model, getattr(model, "roi_heads", None)):
        if hasattr(holder, "score_thresh"):
            holder.score_thresh = 0.0


def test_bfloat16_answers_boxes_in_float32(system, shapes, batch):
    model = system.build("pvt_v2_b0", [str(i) for i in range(6)], shapes)
    with torch.autocast("cpu", torch.bfloat16):
        losses = system.loss(model.train(), batch, shapes)
        assert all(value.dtype == torch.float32 for value in losses.values())
        sum(losses.values()).backward()
        trust_everything(model.eval())
        with torch.no_grad():
            answers = detection.detect(model, batch[0])
    assert answers[0]["boxes"].dtype == answers[0]["scores"].dtype == torch.float32
    # not rounded to bfloat16
    boxes = torch.cat([answer["boxes"] for answer in answers])
    assert (boxes != boxes.bfloat16().float()).any()


def test_the_backbone_learns_at_its_own_rate(system):
    recipe = system.recipes[0]
    model = system.build("pvt_v2_b0", ["a"], recipe)
    rates = {group["base_rate"] for group in make_optimizer(model, recipe).param_groups}
    assert rates == {recipe.learning_rate, recipe.learning_rate * recipe.backbone_rate}
