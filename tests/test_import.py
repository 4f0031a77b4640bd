"""What `import pvt_kernels` costs beside PyTorch's own import."""

import json
import subprocess
import sys

import torch

from pvt_kernels.backends import registry

SHARE_OF_TORCH = 0.25
TIMED = """
import json, sys, time
begin = time.perf_counter()
import torch
between = time.perf_counter()
import pvt_kernels
end = time.perf_counter()
heavy = [name for name in ("torch._dynamo", "torch._inductor", "rich") if name in sys.modules]
print(json.dumps([between - begin, end - between, heavy]))
"""


def test_the_import_takes_less_than_a_quarter_of_pytorchs():
    # the best of three: others may have the core just then
    shares = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", TIMED], check=True, capture_output=True)
        torch_s, own_s, heavy = json.loads(out.stdout)
        assert heavy == []
        shares.append(own_s / torch_s)
    assert min(shares) < SHARE_OF_TORCH


def test_the_choice_of_a_backend_is_marked_as_pytorch_marks_constants():
    def constant():
        return 0

    marks = vars(torch.compiler.assume_constant_result(constant))
    assert marks and marks.items() <= vars(registry._choose).items()


def test_the_first_compilation_says_nothing():
    program = """
import torch, pvt_kernels
layer = pvt_kernels.SRAttention(16, 2, sr_ratio=2)
torch.compile(layer, backend="eager", fullgraph=True)(torch.randn(1, 16, 16), 4, 4)
"""
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert b"pvt_kernels" not in out.stderr
