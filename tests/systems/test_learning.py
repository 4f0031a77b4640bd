"""Each system learns the generated data on two CPU cores: `make test-systems`."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from pvt_kernels import systems
from pvt_kernels.systems.coco_figures import CocoFigures
from pvt_kernels.systems.datasets.shapes import make_data
from pvt_kernels.systems.training.distributed import Processes
from pvt_kernels.systems.training.engine import LAST, Run, Training
from pvt_kernels.systems.training.recipe import find

# of the figures on the images to test, after the recipe "shapes"
BARS = {
    "classification": {"top1": 0.95},
    "retinanet": {"box_AP50": 0.9},
    "mask_rcnn": {"box_AP50": 0.8, "mask_AP50": 0.8},
    "detr": {"box_AP50": 0.25},
    "semantic_fpn": {"miou": 0.6},
    "trans2seg": {"miou": 0.6},
}
# whose backbone starts, as in the paper, from a classifier: here of the generated data
PRETRAINED = {"detr"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("learning") / "data")


@pytest.mark.systems
@pytest.mark.parametrize("name", BARS)
def test_a_system_learns_the_shapes(name, data, tmp_path):
    weights = None
    if name in PRETRAINED:
        train("classification", data, tmp_path / "classifier")
        weights = tmp_path / "classifier" / LAST
    metrics = train(name, data, tmp_path / name, weights)
    for figure, bar in BARS[name].items():
        assert metrics[figure] >= bar, metrics


def train(name, data, output, weights=None):
    """The figures at the end of the recipe "shapes"."""
    system = systems.load(name)
    run = Run(
        system=system,
        recipe=find(system.recipes, "shapes", None),
        data=data[systems.LAYOUTS[name].name],
        output=output,
        weights=weights,
        workers=1,
    )
    return Training(run, Processes(0, 1, torch.device("cpu"))).run(Console()).metrics


def test_detr_overfits_an_image(shapes_data):
    """Losses, matching and the boxes' way back to the image agree: it finds what it was shown."""
    system = systems.load("detr")
    recipe = replace(find(system.recipes, "shapes", None), flip=0.0, learning_rate=5e-4)
    dataset = system.dataset(shapes_data["coco"], recipe, True)
    image, target = dataset[0]
    batch = system.collate([(image, target)])
    model = system.build("pvt_v2_b0", dataset.classes, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate)
    for _ in range(60):
        optimizer.zero_grad()
        sum(system.loss(model.train(), batch, recipe).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
    evaluator = CocoFigures(dataset, torch.device("cpu"), recipe)
    evaluator.dataset.image_ids = [target["image_id"]]
    with torch.no_grad():
        evaluator.update(model.eval(), batch)
    figures = evaluator.compute()
    assert figures["box_AP50"] > 0.95, figures
