"""The study of backbones by resolution: counts, what is left out, and a small run."""

import pytest
import torch
from torch import nn

from pvt_kernels import models
from pvt_kernels.benchmarking import study
from pvt_kernels.benchmarking.results import FAILED, NOT_RUN, OK, Measurement, Results
from pvt_kernels.cli import main

SMALL = ("PVT-Small", "ResNet-50 (timm)")


@pytest.fixture
def briefly(monkeypatch):
    monkeypatch.setattr(study, "NETWORKS", {name: study.NETWORKS[name] for name in SMALL})
    monkeypatch.setattr(study, "SECONDS", 0.0)
    monkeypatch.setattr(study, "ROUNDS", 2)


def case_of(side):
    return study.suite([(side, side)], "fp32", 1, "cpu").cases[0]


@pytest.mark.parametrize(
    ("name", "parameters", "gflops"),
    [("PVT-Small", 24.5, 3.8), ("ViT-Small/16 (timm)", 22.1, 4.6), ("ResNet-50 (timm)", 25.6, 4.1)],
)
def test_networks_are_of_the_published_size(name, parameters, gflops):
    with torch.device("meta"):
        network = study.NETWORKS[name]()
    head = {"ResNet-50 (timm)": 2048, "PVT-Small": 512}.get(name, 384)
    count = sum(p.numel() for p in network.parameters()) + 1000 * (head + 1)
    assert count / 1e6 == pytest.approx(parameters, abs=0.06)
    assert models.count_flops(network) / 1e9 == pytest.approx(gflops, abs=0.05)


def test_without_reduction_or_pyramid_the_operations_grow_faster():
    flops = {}
    for name, build in study.NETWORKS.items():
        with torch.device("meta"):
            network = build()
        small, large = (models.count_flops(network, (side, side)) for side in (448, 896))
        flops[name] = large / small
    # four times the pixels: a convolution's cost fourfold, full attention's up to sixteenfold
    assert flops["ResNet-50 (timm)"] == pytest.approx(4, rel=0.01)
    assert 4 < flops["PVT-Small"] < flops["ViT-Small/16 (timm)"]
    assert flops["ViT-Small/16 (timm)"] < flops["PVT-Small, full attention"] < 16
    assert flops["PVT-Small, no pyramid"] == pytest.approx(flops["ViT-Small/16 (timm)"], rel=0.02)


def test_sizes_run_from_small_to_large():
    chosen = study.suite([(96, 64), (64, 64), (128, 128)], "bf16", 2, "cpu").cases
    assert [case.size for case in chosen] == [(64, 64), (96, 64), (128, 128)]
    assert all((case.dtype, case.batch) == ("bf16", 2) for case in chosen)


def test_what_would_take_too_long_or_not_fit_is_counted_alone(briefly, monkeypatch):
    ran = {SMALL[0]: (1000.0, 1), SMALL[1]: (1e-3, 10**13)}
    before = [Measurement(case_of(64), name, samples=[seconds], flops=10**9, peak_bytes=peak)
              for name, (seconds, peak) in ran.items()]  # fmt: skip
    measured = study.run_case(case_of(96), before)
    assert [m.status for m in measured] == [NOT_RUN, NOT_RUN]
    assert measured[0].reason.startswith("would take about")
    assert "GB needed" in measured[1].reason
    assert all(m.flops > 10**9 and not m.samples and m.peak_bytes is None for m in measured)


def test_a_failing_network_spoils_no_other(briefly, monkeypatch):
    def peak(case, name):
        if name == SMALL[0]:
            raise RuntimeError("killed")
        return study.memory.Peak(10**6, 0.1)

    monkeypatch.setattr(study, "peak", peak)
    failed, fine = study.run_case(case_of(64))
    assert (failed.status, failed.reason) == (FAILED, "RuntimeError: killed")
    assert fine.status == OK and fine.peak_bytes == 10**6 and len(fine.samples) == 2


def test_the_peak_holds_at_least_the_largest_activation(monkeypatch):
    case = case_of(224)
    monkeypatch.setitem(study.NETWORKS, "convolution", lambda: nn.Conv2d(3, 64, 1))
    assert study._measure(case, "convolution").bytes >= 64 * 224 * 224 * 4


def test_the_command_writes_table_and_plot(briefly, tmp_path, capsys):
    given = ["study", "--device=cpu", "--sizes", "96x96", "64x64", "--output", str(tmp_path)]
    assert main(given) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "study.json", "study.md", "scale-fp32.png"
    }  # fmt: skip
    assert "Backbones by resolution, forward, fp32" in capsys.readouterr().out
    results = Results.load(tmp_path / "study.json")
    assert [(m.case.size[0], m.contender) for m in results.measurements] == [
        (size, name) for size in (64, 96) for name in SMALL
    ]
    assert all(m.status == OK and m.peak_bytes > 0 for m in results.measurements)
    rows = [line for line in (tmp_path / "study.md").read_text().splitlines() if "ResNet" in line]
    assert len(rows) == 2 and all(len(row.split("|")) == 10 for row in rows)
    (tmp_path / "scale-fp32.png").unlink()
    assert main(["plot", str(tmp_path / "study.json")]) == 0
    assert (tmp_path / "scale-fp32.png").exists()
