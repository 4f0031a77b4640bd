"""The host code of the GPU backends with a stand-in for the driver: what it launches, and counts.

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
BACKENDS = ("triton", "cuda")


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
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_makes_few_launches_and_calls(facts, backend, stage):
    of_stage = facts[backend]["stages"][stage]
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
    steps = [facts["triton"]["stages"][stage]["step"]["launches"] for stage in STAGES]
    assert steps == [
        reduction + fused + backward + dreduction,
        # so few tokens of this width are not fused
        *[reduction + attention + backward + dreduction] * 2,
        attention + backward,
    ]


def test_the_cuda_launches_of_a_step_are_those_of_its_ops(facts):
    reduction = ["spatial_reduction_product_kernel", "spatial_reduction_normalize_kernel"]
    attention = ["attention_forward_kernel"]
    backward = ["attention_dq_kernel", "attention_dk_dv_kernel", "fold_kernel"]
    dreduction = [f"spatial_reduction_{name}_kernel" for name in ("dz", "dx", "dweight", "sums")]
    steps = [facts["cuda"]["stages"][stage]["step"]["launches"] for stage in STAGES]
    assert steps == [
        *[reduction + attention + backward + dreduction + ["fold_kernel"]] * 3,
        attention + backward,
    ]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_a_step_reads_nothing_that_the_package_keeps(facts, backend, stage):
    assert facts[backend]["stages"][stage]["of a graph"] == ""
    # that it would show: the reduction's kernels read parameters, which stage 4 has none of
    without = facts[backend]["stages"][stage]["of a graph without parameters"]
    assert ("is of no live memory" in without) == (stage != "4")


@pytest.mark.parametrize("stage", STAGES)
def test_launches_ask_cuda_for_nothing(facts, stage):
    assert facts["cuda"]["stages"][stage]["attributes"] == 0


def test_what_a_kernel_may_have_of_shared_memory_only_grows(facts):
    names = "spatial_reduction_product_kernel", "spatial_reduction_normalize_kernel"
    assert facts["shared"] == [*names] * 4


def test_kernels_are_compiled_and_loaded_once_whatever_the_size(facts):
    compiled, loaded = facts["sizes"]["compiled"], facts["sizes"]["loaded"]
    assert compiled[0] > 0
    assert len(set(compiled[1:])) == len(set(loaded[1:])) == 1
    assert compiled == loaded


def test_a_refused_launch_names_the_kernel_and_the_error(facts):
    assert facts["triton"]["refused"] == (
        "norm_kernel: cuLaunchKernel failed: as the test asked for (CUDA_ERROR_LAUNCH_FAILED)"
    )
    assert facts["cuda"]["refused"] == (
        "spatial_reduction_forward: spatial_reduction_normalize<sm80, float16>, 2 blocks of 128 "
        "threads with 1024 bytes of shared memory: cudaLaunchKernel failed: too many resources "
        "requested for launch (cudaErrorLaunchOutOfResources)"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_push_each_others_plans_out(facts, backend):
    assert facts[backend]["threads"]["failures"] == []
    assert 1 <= facts[backend]["threads"]["held"] <= 4


@pytest.mark.parametrize("stage", ("1", "3", "4"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_layer_launches_the_same(facts, backend, stage):
    compiled = facts[backend]["compiled"][stage]
    assert compiled["launches"] == facts[backend]["stages"][stage]["step"]["launches"]
    # two operators, each of them the plans' short way
    assert compiled["calls"] < 60


def test_whole_models_compile_without_a_graph_break(facts):
    # 13 layers with reduction, 3 without; 9 and 4 launches. A feed-forward has one, of its
    # backward, and with a convolution three.
    assert facts["models"] == {
        "pvt_small": 13 * 9 + 3 * 4 + 16 * 1,
        "segformer": 2 * 9 + 2 * 3,
    }
