"""A build that treats every GPU as an older one runs the kernels of that one, and refuses alike."""

import re

import pytest
import torch

from ..ops.cases import attention, spatial_reduction

CUDA = "pvt_kernels.backends.cuda"


def atoms(device) -> set[str]:
    """What multiplied in the last call's kernels."""
    symbols = device.counters["kernels"]
    found = [re.search(r"\d(Simt\d\d|Sm70Wmma|Sm70|Sm75|Sm80)", symbol) for symbol in symbols]
    assert symbols and all(found), symbols
    return {match[1] for match in found}


def results(device, dtype) -> tuple[list[torch.Tensor], set[str]]:
    """Of both ops, forward and backward, with the atoms of all their kernels."""
    outputs, used = [], set()

    def run(function, *arguments):
        found = device.run(f"{CUDA}.{function}", *arguments)
        used.update(atoms(device))
        outputs.extend(found)
        return found

    torch.manual_seed(0)
    q, k, v = attention.random_inputs(1, 70, 37, 2, 64, dtype=dtype)
    o, lse = run("attention.forward", q, k, v, 0.1)
    run("attention.backward", torch.randn_like(o), q, k, v, o, lse, 0.1)
    x, weight, *vectors = spatial_reduction.random_inputs(2, 8, 12, 40, 4, dtype)
    y, normalized, rstd = run("spatial_reduction.forward", x, 8, 12, weight, *vectors, 1e-5)
    saved = weight, vectors[1], normalized, rstd
    run("spatial_reduction.backward", torch.randn_like(y), x, 8, 12, *saved)
    return outputs, used


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_newer_gpu_runs_the_kernels_of_the_architecture_named(
    device, treated_device, treat_as_arch, dtype
):
    device.arch = treat_as_arch
    expected, on_the_true_one = results(device, dtype)
    assert treated_device.arch == 80
    actual, used = results(treated_device, dtype)
    assert used == {f"{'Sm' if dtype == torch.float16 else 'Simt'}{treat_as_arch}"}
    assert used == on_the_true_one
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_bfloat16_is_refused_as_on_the_true_device(treated_device, treat_as_arch):
    inputs = attention.random_inputs(1, 4, 4, 1, 8, dtype=torch.bfloat16)
    version = rf"{treat_as_arch // 10}\.{treat_as_arch % 10}"
    reason = (
        rf"needs .* 8\.0 .* runs code for {version}, since it was built with "
        rf"PVT_KERNELS_TREAT_AS_ARCH={treat_as_arch}: use float16 or float32"
    )
    with pytest.raises(RuntimeError, match=reason):
        treated_device.run(f"{CUDA}.attention.forward", *inputs, 1.0)
