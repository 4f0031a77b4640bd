"""Classification: recipe, loss, figures and gradients."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import RandAugment

from pvt_kernels import models
from pvt_kernels.systems.classification import RECIPES, SYSTEM, Accuracy, train_transform
from pvt_kernels.systems.training.schedules import Cosine

IMAGENET, SHAPES = RECIPES[0], RECIPES[-1]


def test_the_recipe_is_the_papers():
    assert (IMAGENET.epochs, IMAGENET.micro_batch, IMAGENET.learning_rate) == (300, 128, 1e-3)
    assert IMAGENET.batch_size == 8 * 128 and IMAGENET.weight_decay == 0.05
    assert IMAGENET.schedule == Cosine(5, 1e-3, 1e-2)
    assert IMAGENET.model == "pvt_small" and IMAGENET.image_size == 224


def test_images_are_cropped_and_normalised(shapes_data):
    root = shapes_data["image_folder"]
    for train in (True, False):
        image, _ = SYSTEM.dataset(root, IMAGENET, train)[0]
        assert image.shape == (3, 224, 224) and image.dtype == torch.float32
    # a test image is the same each time, a training image is not
    tests, training = (SYSTEM.dataset(root, IMAGENET, train) for train in (False, True))
    assert torch.equal(tests[0][0], tests[0][0])
    assert not torch.equal(training[0][0], training[0][0])


def test_randaugment_runs_at_every_strength():
    """Its posterisation asks Pillow for no bits at all at the strongest."""
    transform = train_transform(IMAGENET)
    augment = next(s for s in transform.transforms if isinstance(s, RandAugment))
    image = Image.new("RGB", (16, 16), "white")
    for op in augment.ops:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert op(image).size == (16, 16), op


class Scores(torch.nn.Module):
    """Answers with given scores, whatever the images are."""

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(scores)
        self.pyramid = models.pvt_v2_b0(num_classes=scores.shape[1])

    def forward(self, _):
        return self.scores


def test_the_loss_without_mixing_is_smoothed_cross_entropy():
    model, targets = Scores(torch.randn(4, 10)), torch.tensor([1, 5, 0, 9])
    losses = SYSTEM.loss(model, (torch.zeros(4, 3, 8, 8), targets), SHAPES)
    log = model.scores.log_softmax(1)
    expected = -(0.9 * log[range(4), targets] + 0.1 * log.mean(1)).mean()
    assert losses["cross_entropy"].item() == pytest.approx(expected.item())


def test_the_loss_of_mixed_images_has_mixed_targets(monkeypatch):
    recipe = replace(IMAGENET, cutmix=0.0)
    monkeypatch.setattr("numpy.random.beta", lambda *_: 0.75)
    model, targets = Scores(torch.randn(2, 10)), torch.tensor([3, 7])
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    losses = SYSTEM.loss(model, (images, targets), recipe)
    mixed = 0.75 * F.one_hot(targets, 10) + 0.25 * F.one_hot(targets.flip(0), 10)
    expected = F.cross_entropy(model.scores, 0.9 * mixed + 0.01)
    assert losses["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_odd_number_of_images_can_not_be_mixed():
    model = Scores(torch.randn(3, 10))
    with pytest.raises(ValueError, match="mix pairs, but a process takes 3 images"):
        SYSTEM.loss(model, (torch.zeros(3, 3, 8, 8), torch.zeros(3).long()), IMAGENET)


def test_the_figures_are_counted_right(shapes_data):
    dataset = SYSTEM.dataset(shapes_data["image_folder"], SHAPES, False)
    accuracy = Accuracy(dataset, torch.device("cpu"), SHAPES)
    # the true class is first, second, sixth, first
    scores = torch.tensor(
        [[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [0, 0, 9, 0, 0, 0]]
    ).float()
    targets = torch.tensor([0, 1, 5, 2])
    images = torch.zeros(2, 3, 8, 8)
    accuracy.update(Scores(scores[:2]), (images, targets[:2]))
    accuracy.update(Scores(scores[2:]), (images, targets[2:]))
    assert accuracy.compute() == {"top1": 0.5, "top5": 0.75}


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_linear"])
def test_every_parameter_gets_a_gradient(name):
    model = SYSTEM.build(name, [str(i) for i in range(6)], SHAPES).train()
    batch = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    sum(SYSTEM.loss(model, batch, SHAPES).values()).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None and value.grad.any(), parameter
