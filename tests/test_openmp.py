"""PyTorch and the compiled module share one OpenMP runtime.

Two would each keep threads of their own, which take the cores from each other. The module asks for
a library called libgomp.so.1, and gets the one that PyTorch has loaded under that name by then.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pvt_kernels import _C

MAPS = Path("/proc/self/maps")
FIRST = {
    "torch": "import torch",
    "_C": f"""
import sys
from importlib import util
spec = util.spec_from_file_location("pvt_kernels._C", {_C.__file__!r})
sys.modules[spec.name] = util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
""",
}
# both run parallel loops before the process is asked what it has mapped
THEN = f"""
import json, torch, pvt_kernels
with pvt_kernels.use_backend("cpu"):
    pvt_kernels.attention(*torch.randn(3, 2, 64, 2, 32))
torch.randn(2**20).exp()
with open({str(MAPS)!r}) as maps:
    print(json.dumps(sorted({{line.split()[-1] for line in maps if "/" in line}})))
"""


@pytest.mark.skipif(not MAPS.exists(), reason=f"no {MAPS}, which lists what a process has mapped")
@pytest.mark.parametrize("first", FIRST)
def test_one_runtime_is_mapped(first):
    command = [sys.executable, "-c", FIRST[first] + THEN]
    mapped = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    names = ("libgomp", "libomp", "libiomp")
    runtimes = [path for path in mapped if Path(path).name.startswith(names)]
    assert len(runtimes) == 1, runtimes
