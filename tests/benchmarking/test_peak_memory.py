"""Measured peaks against known allocations and the formula; what does not fit."""

import os
import sys

import psutil
import pytest
import torch

from pvt_kernels.benchmarking import memory, needs
from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    CONVOLVED,
    FEED_FORWARD,
    FORWARD,
    LAYER,
    TRAINING,
    Case,
)
from pvt_kernels.benchmarking.contenders import (
    EAGER_SRA,
    FEED_FORWARD_PEERS,
    NAIVE_MHA,
    PACKAGE,
    PEERS,
    Contender,
)
from pvt_kernels.benchmarking.shapes import stage_shape
from pvt_kernels.benchmarking.workloads import workload

CPU = torch.device("cpu")
MB = 1 << 20


def touch(size):
    return memory.resident_growth(lambda: torch.ones(size, dtype=torch.uint8))


def touch_after_a_larger_one(size):
    torch.ones(4 * size, dtype=torch.uint8)
    return touch(size)


def fail():
    raise ValueError("because")


def die():
    os._exit(3)


@pytest.mark.parametrize("function", [touch, touch_after_a_larger_one])
def test_growth_is_that_of_a_known_allocation(function):
    if function is touch_after_a_larger_one and sys.platform != "linux":
        pytest.skip("only Linux can reset a process's peak")
    peak = memory.in_fresh_process(function, 100 * MB)
    assert 100 * MB <= peak.bytes < 108 * MB
    assert peak.seconds > 0


def test_what_goes_wrong_in_the_process_is_told():
    with pytest.raises(RuntimeError, match="ValueError: because"):
        memory.in_fresh_process(fail)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        memory.in_fresh_process(die)


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_formula_for_naive_attention_against_measurement(mode, dtype):
    case = Case(LAYER, "stage 1", (224, 320), mode, dtype, 1, "cpu")
    needed = workload(case, real_input=False).needed_bytes(NAIVE_MHA)
    assert memory.peak(case, NAIVE_MHA).bytes == pytest.approx(needed, rel=0.2)


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
def test_formula_for_eager_attention_against_measurement(mode):
    case = Case(LAYER, "stage 2", (448, 640), mode, "fp32", 1, "cpu")
    needed = workload(case, real_input=False).needed_bytes(EAGER_SRA)
    assert memory.peak(case, EAGER_SRA).bytes == pytest.approx(needed, rel=0.3)


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
def test_formula_for_a_backbone_against_measurement(mode):
    case = Case(BACKBONE, "pvt_tiny", (448, 640), mode, "fp32", 1, "cpu")
    needed = workload(case, real_input=False).needed_bytes(EAGER_SRA)
    assert memory.peak(case, EAGER_SRA).bytes == pytest.approx(needed, rel=0.3)


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
@pytest.mark.parametrize("model", ["pvt_tiny", "pvt_v2_b0"])
def test_formula_for_this_packages_backbones_against_measurement(model, mode):
    case = Case(BACKBONE, model, (800, 1216), mode, "fp32", 1, "cpu")
    own = Contender("pvt_kernels", PACKAGE, "cpu")
    needed = workload(case, real_input=False).needed_bytes(own)
    assert memory.peak(case, own).bytes == pytest.approx(needed, rel=0.3)


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
@pytest.mark.parametrize("form", ["", CONVOLVED])
@pytest.mark.parametrize("contender", [FEED_FORWARD_PEERS[0], Contender("own", PACKAGE, "cpu")])
def test_formula_for_feed_forward_networks_against_measurement(contender, form, mode):
    case = Case(FEED_FORWARD, f"stage 1{form}", (800, 1216), mode, "fp32", 1, "cpu")
    needed = workload(case, real_input=False).needed_bytes(contender)
    assert memory.peak(case, contender).bytes == pytest.approx(needed, rel=0.3)


def test_the_largest_side_is_the_last_that_fits():
    assert needs.largest_side(lambda size: size[0] * size[1], 96 * 96) == 96
    assert needs.largest_side(lambda size: size[0] * size[1], 96 * 96 - 1) == 64
    assert needs.largest_side(lambda size: size[0] * size[1], 1) == 0


def test_naive_attention_at_the_first_stage():
    shape = stage_shape(1, (800, 1216))
    forward = needs.layer_growth(NAIVE_MHA.kind, shape, torch.float32, backward=False)
    assert forward == pytest.approx(2 * 4 * 60800**2, rel=0.01)
    sdpa = needs.layer_growth(PEERS[1].kind, shape, torch.float32, backward=True)
    assert sdpa < 200e6


def test_shortage_says_what_is_needed_and_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 21_000_000_000)
    assert memory.shortage(29_500_000_000, CPU) == "29.5 GB needed, 21.0 GB free"
    assert memory.shortage(20_000_000_000, CPU) is not None
    assert memory.shortage(19_000_000_000, CPU) is None


def test_free_memory_is_bounded_by_the_control_group(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.total_memory(CPU) == psutil.virtual_memory().total
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.total_memory(CPU) == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("10000\n")
    assert memory.total_memory(CPU) == 10000
    assert memory.free_memory(CPU) == 4000
