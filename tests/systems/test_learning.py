"""Each system learns the generated data on two CPU cores: `make test-systems`."""

import pytest
import torch
from rich.console import Console

from pvt_kernels import systems
from pvt_kernels.datasets.shapes import make_data
from pvt_kernels.training.distributed import Processes
from pvt_kernels.training.engine import Run, Training
from pvt_kernels.training.recipe import find
from tests.systems import LAYOUTS

# of the figures on the images to test, after the recipe "shapes"; DETR, which trains for hundreds
# of epochs from scratch, has none: it does not find objects within minutes
BARS = {
    "classification": {"top1": 0.95},
    "retinanet": {"box_AP50": 0.9},
    "mask_rcnn": {"box_AP50": 0.8, "mask_AP50": 0.8},
    "semantic_fpn": {"miou": 0.6},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("learning") / "data")


@pytest.mark.systems
@pytest.mark.parametrize("name", BARS)
def test_a_system_learns_the_shapes(name, data, tmp_path):
    system = systems.load(name)
    run = Run(
        system=system,
        recipe=find(system.recipes, "shapes", None),
        data=data[LAYOUTS[name]],
        output=tmp_path,
        workers=1,
    )
    metrics = Training(run, Processes(0, 1, torch.device("cpu"))).run(Console()).metrics
    for figure, bar in BARS[name].items():
        assert metrics[figure] >= bar, metrics
