"""The host code of the triton backend with a stand-in for the driver: what it launches, and counts.

Times are for `make host-time`: they depend on the machine, counts do not.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.util import find_spec

import pytest

from .paths import ROOT

STAGES = ("1", "2", "3", "4")


@pytest.fixture(scope="module")
def facts():
    """One process for all: it compiles a dozen kernels."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if platform.system() != "Linux":
        pytest.skip("the stand-in for the driver is a library of Linux")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache"),
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.host.facts"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("stage", STAGES)
def test_a_layer_makes_few_launches_and_calls(facts, stage):
    of_stage = facts["stages"][stage]
    for kind in ("inference", "forward"):
        assert 1 <= len(of_stage[kind]["launches"]) <= 3, kind
        assert of_stage[kind]["calls"] < 40, kind
    assert len(of_stage["step"]["launches"]) - len(of_stage["forward"]["launches"]) <= 8
    assert of_stage["step"]["calls"] < 60
    assert of_stage["step"]["allocations"] <= 16


def test_the_launches_of_a_step_are_those_of_its_ops(facts):
    reduction, attention = ["convolution_kernel", "norm_kernel"], ["attention_forward_kernel"]
    backward = ["attention_dq_kernel", "attention_dkdv_kernel", "fold_kernel"]
    dreduction = ["dx_kernel", "dweight_kernel", "fold_kernel"]
    fused = ["multi_head_attention_kernel"]
    steps = [facts["stages"][stage]["step"]["launches"] for stage in STAGES]
    assert steps == [
        reduction + fused + backward + dreduction,
        # so few tokens of this width are not fused
        *[reduction + attention + backward + dreduction] * 2,
        attention + backward,
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_of_a_step_reads_nothing_that_the_package_keeps(facts, stage):
    assert facts["stages"][stage]["of a graph"] == ""
    # that it would show: the reduction's kernels read parameters, which stage 4 has none of
    without = facts["stages"][stage]["of a graph without parameters"]
    assert ("is of no live memory" in without) == (stage != "4")


def test_kernels_are_compiled_and_loaded_once_whatever_the_size(facts):
    compiled, loaded = facts["sizes"]["compiled"], facts["sizes"]["loaded"]
    assert compiled[0] > 0
    assert len(set(compiled[1:])) == len(set(loaded[1:])) == 1
    assert compiled == loaded


def test_a_refused_launch_names_the_kernel_and_the_error(facts):
    assert facts["refused"] == (
        "norm_kernel: cuLaunchKernel failed: as the test asked for (CUDA_ERROR_LAUNCH_FAILED)"
    )


def test_threads_push_each_others_plans_out(facts):
    assert facts["threads"]["failures"] == []
    assert 1 <= facts["threads"]["held"] <= 4


@pytest.mark.parametrize("stage", ("1", "3", "4"))
def test_a_compiled_layer_launches_the_same(facts, stage):
    compiled = facts["compiled"][stage]
    assert compiled["launches"] == facts["stages"][stage]["step"]["launches"]
    # two operators, each of them the plans' short way
    assert compiled["calls"] < 60


def test_whole_models_compile_without_a_graph_break(facts):
    # 13 layers with reduction, 3 without; 9 and 4 launches. A feed-forward has one, of its
    # backward, and with a convolution three.
    assert facts["models"] == {
        "pvt_small": 13 * 9 + 3 * 4 + 16 * 1,
        "segformer": 2 * 9 + 2 * 3,
    }
