"""The code path amx_bf16 on any machine: amx_stand_in.h computes AMX's instructions."""

import os
import subprocess
import sys

import pytest

from . import amx_module


@pytest.fixture(scope="module")
def run():
    for name in ("cmake", "pybind11"):
        pytest.importorskip(name, reason=f"{name} is not installed here: pip install {name}")
    environment = {
        **os.environ,
        amx_module.VARIABLE: str(amx_module.build()),
        "PVT_KERNELS_CPU_CAPABILITY": "amx_bf16",
    }

    def run(*command: str) -> subprocess.CompletedProcess:
        command = (sys.executable, *command)
        return subprocess.run(
            command, env=environment, cwd=amx_module.ROOT, capture_output=True, text=True
        )

    return run


def test_every_op_against_the_oracle(run):
    tests = ("tests/backends/test_cpu.py", "-k", "amx_bf16 or 16_bit", "-q")
    done = run("-m", "pytest", "-p", amx_module.__name__, "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_sdpa_stays_the_default_and_the_choice_says_why(run):
    done = run(
        "-c",
        "from tests.csrc import amx_module\n"
        "import torch, pvt_kernels\n"
        "from pvt_kernels import attention\n"
        "q = torch.randn(1, 8, 1, 8, dtype=torch.bfloat16)\n"
        "print(*pvt_kernels.explain(attention, q, q, q))\n"
        "print(*pvt_kernels.explain(attention, *(t.float() for t in (q, q, q))))\n"
        "with pvt_kernels.use_backend('cpu'):\n"
        "    print(*pvt_kernels.explain(attention, q, q, q))\n",
    )
    assert done.returncode == 0, done.stderr
    chosen = [line for line in done.stdout.splitlines() if line.startswith("attention")]
    assert [line.split(": ")[1].split(" ")[0] for line in chosen] == ["sdpa", "cpu", "cpu"]
    assert "cpu: sdpa comes first in bfloat16 on CPUs with AMX" in done.stdout
    assert "its kernels for amx_bf16" in chosen[2]
