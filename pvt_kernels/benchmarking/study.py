"""What a backbone costs by resolution: PVT-Small, with and without its ideas, a ViT, a ResNet.

The paper's comparison (Wang et al., ICCV 2021, section 5.5 and figure 5), with time and memory
measured beside the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pvt_kernels import models
from pvt_kernels.benchmarking import memory
from pvt_kernels.benchmarking.cases import FORWARD, SCALE, Case, Suite
from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.memory import WARM_UP_SIZE, Peak
from pvt_kernels.benchmarking.photo import photo_batch
from pvt_kernels.benchmarking.results import FAILED, NOT_RUN, Measurement
from pvt_kernels.benchmarking.runner import Progress, full_precision, one_line
from pvt_kernels.benchmarking.shapes import Size
from pvt_kernels.benchmarking.timing import interleave, seconds

SIZES: tuple[Size, ...] = tuple((side, side) for side in (224, 448, 672, 896, 1120, 1344))
SECONDS, ROUNDS = 1.0, 7
# a forward that would take longer is not run
LONGEST_S = 12.0


def _timm(name: str, **settings: bool) -> nn.Module:
    return require("timm").create_model(name, num_classes=0, **settings)


# each without a classifier, with random weights
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "PVT-Small": partial(models.pvt_small, num_classes=0),
    "PVT-Small, full attention": partial(models.pvt_small_full_attention, num_classes=0),
    "PVT-Small, no pyramid": partial(models.pvt_small_columnar, num_classes=0),
    "ViT-Small/16 (timm)": partial(_timm, "vit_small_patch16_224", dynamic_img_size=True),
    "ResNet-50 (timm)": partial(_timm, "resnet50"),
}


def suite(sizes: Sequence[Size], dtype: str, batch: int, device: str) -> Suite:
    """A case for each size, small to large."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    cases = tuple(Case(SCALE, "backbones", size, FORWARD, dtype, batch, device) for size in ordered)
    return Suite(cases, SECONDS, ROUNDS, ROUNDS, quick=False)


def run_case(
    case: Case,
    before: Sequence[Measurement] = (),
    progress: Progress = lambda _: None,
) -> list[Measurement]:
    """Count, measure and time a forward of every network on the photo.

    Args:
        case: of `suite`.
        before: what was measured at smaller sizes, from which follows what would take too long or
            not fit; without it all networks run.
        progress: told what is running.
    """
    device = torch.device(case.device)
    measurements, networks = [], {}
    with full_precision(device):
        for name, build in NETWORKS.items():
            progress(f"{case}: memory of {name}")
            network = build()
            flops = 2 * case.batch * models.count_flops(network, case.size)
            measurement = Measurement(case, name, flops=flops)
            measurements.append(measurement)
            lacking = _shortage(measurement, before)
            if lacking:
                measurement.end(NOT_RUN, lacking)
                continue
            try:
                measurement.peak_bytes = peak(case, name).bytes
            except RuntimeError as error:
                measurement.end(FAILED, one_line(error))
            else:
                networks[name] = _ready(network, case)
        progress(f"{case}: timing")
        images = _images(case, case.size)
        samples, _ = interleave(
            {
                name: partial(seconds, partial(_forward, network, images), device)
                for name, network in networks.items()
            },
            SECONDS,
            ROUNDS,
        )
    for measurement in measurements:
        measurement.samples = samples.get(measurement.contender, [])
    return measurements


def peak(case: Case, name: str) -> Peak:
    """Measure the peak of one forward of a network.

    Raises:
        RuntimeError: it failed, or the process was killed.
    """
    if case.device == "cpu":
        return memory.in_fresh_process(_measure, case, name)
    return _measure(case, name)


def _measure(case: Case, name: str) -> Peak:
    network, images = _ready(NETWORKS[name](), case), _images(case, case.size)
    return memory.growth(partial(_forward, network, images), torch.device(case.device))


def _ready(network: nn.Module, case: Case) -> nn.Module:
    """In evaluation mode on the device, and called once on small images."""
    network = network.to(case.device, case.torch_dtype).eval()
    _forward(network, _images(case, WARM_UP_SIZE))
    return network


def _images(case: Case, size: Size) -> Tensor:
    return photo_batch(size, case.batch).to(case.device, case.torch_dtype)


@torch.no_grad()
def _forward(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


def _shortage(measurement: Measurement, before: Sequence[Measurement]) -> str | None:
    """Why a network should not run, as the largest size that it ran at tells; None if it may.

    Time and memory grow as the operations do, or more slowly.
    """
    ran = [m for m in before if m.contender == measurement.contender and m.samples]
    if not ran:
        return None
    growth = measurement.flops / ran[-1].flops
    expected = growth * ran[-1].median
    if expected > LONGEST_S:
        return f"would take about {expected:.0f} s"
    return memory.shortage(int(growth * ran[-1].peak_bytes), torch.device(measurement.case.device))
