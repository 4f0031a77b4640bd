"""The model of what the GPU kernels cost, and its command line."""

import math
import re
from pathlib import Path

import pytest
import torch

from pvt_kernels.benchmarking import cuda_launches, model
from pvt_kernels.benchmarking.shapes import STAGES, stage_shape
from pvt_kernels.cli import main

SIZE = (800, 1216)


@pytest.mark.parametrize("stage", STAGES)
def test_the_kernels_flops_are_the_layers(stage):
    shape = stage_shape(stage, SIZE, batch=2)
    costs = model.forward_costs(shape, torch.float16)
    assert sum(cost.flops for cost in costs) == shape.flops(backward=False)
    backward = sum(cost.flops for cost in model.backward_costs(shape, torch.float16))
    # the attention's backward computes S and dP twice: 7 products instead of 4
    recomputed = 3 * 2 * shape.batch * shape.queries * shape.keys * shape.dim
    assert backward == 2 * sum(cost.flops for cost in costs) + recomputed
    # fp32 on a V100 computes S alone twice
    once = sum(cost.flops for cost in model.backward_costs(shape, torch.float32, arch=70))
    assert once == backward - 2 * recomputed // 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("stage", [1, 2])
def test_the_fused_forward_moves_little_more_than_x_out_k_and_v(stage, dtype):
    shape = stage_shape(stage, SIZE, batch=2)
    x = shape.batch * shape.queries * shape.dim * dtype.itemsize
    kv = 2 * shape.batch * shape.keys * shape.dim * dtype.itemsize
    fused = model.fused_forward_cost(shape, dtype)
    assert 2 * x + kv <= fused.bytes <= 1.15 * (2 * x + kv)
    parts = ("q projection", "attention_forward", "out projection")
    unfused = [cost for cost in model.forward_costs(shape, dtype) if cost.name in parts]
    assert fused.flops == sum(cost.flops for cost in unfused)
    assert fused.bytes < 0.5 * sum(cost.bytes for cost in unfused)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_the_bytes_are_those_of_the_tensors_that_are_launched(stage, dtype):
    pytest.importorskip("triton", reason="triton is not installed")
    from pvt_kernels.backends.triton.launch import Gpu
    from pvt_kernels.benchmarking.triton_launches import launches_of_a_layer

    shape = stage_shape(stage, SIZE, batch=2)
    costs = [*model.forward_costs(shape, dtype), *model.backward_costs(shape, dtype)]
    bytes_of = {cost.name: cost.bytes for cost in [*costs, model.fused_forward_cost(shape, dtype)]}
    y = shape.batch * shape.keys * shape.dim
    # of what is summed in fp32 over splits, these are the results
    sums = {"convolution": 4 * y, "norm": 4 * y}
    launches = launches_of_a_layer(shape, dtype, Gpu(90, 132))
    for name, launch in launches.items():
        # a fold has pointers to results that it does not write
        tensors = launch.outputs | ({} if name.endswith("fold") else launch.inputs)
        whole = sum(
            t.numel() * t.element_size()
            for n, t in tensors.items()
            # the model leaves vectors of C numbers out
            if n != "partials" and t.numel() > shape.dim
        )
        assert whole + sums.get(name, 0) == pytest.approx(bytes_of[name], rel=2e-3), name
    not_launched = {name for name in bytes_of if "projection" in name or name == "weight copy"}
    if stage > 1 or dtype == torch.float32:
        not_launched.add("multi_head_attention")
    assert set(launches) == set(bytes_of) - not_launched


@pytest.mark.parametrize(("stage", "share"), [(1, 0.003), (2, 0.011), (3, 0.036)])
def test_keys_and_values_in_the_reductions_epilogue_would_save_little(stage, share):
    """y would not be written and read: why their projection is a product of its own."""
    gpu, shape = model.GPU_MODELS["h100"], stage_shape(stage, SIZE, batch=2)
    y = shape.batch * shape.keys * shape.dim * 2
    saved = 2 * y / gpu.bandwidth
    forward = sum(c.seconds(gpu, torch.float16) for c in model.forward_costs(shape, torch.float16))
    assert saved < share * forward


def test_the_roofline_is_the_larger_of_two_times():
    gpu = model.GPU_MODELS["h100"]
    computing = model.KernelCost("a", flops=989 * 10**9, bytes=1)
    assert computing.seconds(gpu, torch.bfloat16) == pytest.approx(1e-3)
    moving = model.KernelCost("b", flops=1, bytes=3350 * 10**6)
    assert moving.seconds(gpu, torch.float32) == pytest.approx(1e-3)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_backward_has_a_block_for_each_multiprocessor_of_an_h100(stage):
    pytest.importorskip("triton", reason="triton is not installed")
    from pvt_kernels.backends.triton.launch import Gpu
    from pvt_kernels.benchmarking.triton_launches import launches_of_a_layer

    gpu, shape = model.GPU_MODELS["h100"], stage_shape(stage, SIZE, batch=2)
    counts = model.waves(shape, gpu, torch.float16)
    launches = launches_of_a_layer(shape, torch.float16, Gpu(gpu.arch, gpu.multiprocessors))
    for cost in model.backward_costs(shape, torch.float16):
        if "projection" not in cost.name and cost.name != "weight copy":
            launch = launches[cost.name]
            assert launch.blocks >= gpu.multiprocessors, cost.name
            assert counts[cost.name] == launch.blocks / launch.resident / gpu.multiprocessors
    assert {"attention_forward", "convolution"} < set(counts)
    assert ("multi_head_attention" in counts) == (stage == 1)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_copy_of_a_weight_that_is_not_in_channels_last_is_short(stage):
    """Why the kernels have one order of a weight and not two."""
    gpu, shape = model.GPU_MODELS["h100"], stage_shape(stage, SIZE, batch=2)
    seconds = {
        c.name: c.seconds(gpu, torch.float16) for c in model.forward_costs(shape, torch.float16)
    }
    assert seconds["weight copy"] == pytest.approx(0.31e-6, rel=0.02)
    assert seconds["weight copy"] < 0.012 * sum(seconds.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_v100_has_the_waves_of_the_cuda_kernels(dtype):
    table = (Path(__file__).parents[2] / "benchmarks/results/cuda-kernels.md").read_text()
    atom = "Sm70" if dtype == torch.float16 else "Simt70"
    names = {name: kernel for kernel, name in cuda_launches.COSTS.items()}
    shape, gpu = stage_shape(1, SIZE, batch=2), model.GPU_MODELS["v100"]
    launched = cuda_launches.blocks_of_a_layer(shape, dtype, gpu.multiprocessors)
    counts = model.waves(shape, gpu, dtype)
    assert set(counts) == set(launched)
    for name, (blocks, resident) in launched.items():
        # the launchers count on no more than the compiled code leaves room for
        row = rf"\| sm_70 \| {names.get(name, name)} \| {atom} \| (?:64)? \|.* (\d+) \|\n"
        assert int(re.search(row, table)[1]) >= resident, name
        assert counts[name] == blocks / (resident * gpu.multiprocessors)
        # how much longer the waves take than even ones, which the last one, not full, makes them
        uneven = 1.07 if name.endswith("dkdv") else 1.25
        assert math.ceil(counts[name]) <= uneven * counts[name], name
    # one wave, since its partial results are what more of them would cost
    backward = "attention_dkdv" if dtype == torch.float16 else "attention_dqdkdv"
    assert all(counts[name] <= 1 for name in (backward, "convolution", "dweight"))


def test_a_v100_has_no_waves_in_bfloat16():
    assert model.waves(stage_shape(1, SIZE), model.GPU_MODELS["v100"], torch.bfloat16) == {}


@pytest.mark.parametrize("name", model.GPU_MODELS)
def test_the_command_prints_every_kernel_and_measures_nothing(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["roofline", "--gpu", name, "--stages", "1", "4", "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    for cost in model.forward_costs(stage_shape(1, SIZE), torch.float16):
        assert cost.name in printed
    assert "the least time, not measured" in printed
    gpu, shape = model.GPU_MODELS[name], stage_shape(1, SIZE, batch=2)
    for costs in model.totals(shape, torch.float16, gpu.arch).values():
        total = 1e6 * sum(cost.seconds(gpu, torch.float16) for cost in costs)
        assert re.search(rf" total .* {total:.1f} ", printed)
    assert not any(tmp_path.iterdir())
