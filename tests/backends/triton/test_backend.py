"""Where the Triton backend runs, why not elsewhere, and the package without triton."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pvt_kernels.backends import AttentionInputs, SpatialReductionInputs
from pvt_kernels.backends import triton as backend
from pvt_kernels.backends.registry import BACKENDS

from .kernels import needs_interpreter

pytestmark = needs_interpreter
FP32 = (torch.float32, 64, False)


@pytest.mark.parametrize(
    ("device", "facts", "interpreted", "capability", "reason"),
    [
        ("cpu", FP32, False, None, "the device is cpu, and TRITON_INTERPRET=1 is not set"),
        ("meta", FP32, False, None, "the device is meta"),
        ("cuda:0", FP32, True, None, "TRITON_INTERPRET=1 is for CPU tensors"),
        ("cuda:0", FP32, False, (7, 5), "compute capability is 7.5, below 8.0"),
        ("cuda:0", (torch.float64, 64, False), False, (9, 0), "the dtype is torch.float64"),
        ("cuda:0", (torch.float16, 264, False), False, (9, 0), "head_dim is 264, above 256"),
        ("cuda:0", (torch.float32, 256, False), False, (9, 0), "head_dim is 256 in float32"),
        ("cuda:0", (torch.float16, 64, True), False, (9, 0), "attention dropout is active"),
    ],
)
def test_reasons(monkeypatch, device, facts, interpreted, capability, reason):
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    inputs = AttentionInputs(torch.device(device), *facts)
    (given,) = BACKENDS["triton"].not_supported_reasons(inputs)
    assert reason in given


def test_reasons_on_rocm_without_triton_and_for_many_channels(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(backend, "_is_installed", lambda: False)
    inputs = SpatialReductionInputs(torch.device("cuda", 0), torch.float16, 4096, 2)
    assert BACKENDS["triton"].not_supported_reasons(inputs) == [
        "the package triton is not installed",
        "this PyTorch is not built for NVIDIA GPUs",
        "there are 4096 channels, above 2048",
    ]


def run_python(code):
    """In a process of its own, whose kernels are not the interpreter's."""
    root = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_runs_without_triton():
    process = run_python(
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else real(name, *a)\n"
        "import torch, pvt_kernels\n"
        "q = torch.randn(1, 6, 2, 8)\n"
        "pvt_kernels.attention(q, q, q)\n"
        "(decision,) = pvt_kernels.explain(pvt_kernels.attention, q, q, q)\n"
        "print(decision.reasons['triton'])\n"
    )
    assert process.returncode == 0, process.stderr
    assert "the package triton is not installed" in process.stdout
