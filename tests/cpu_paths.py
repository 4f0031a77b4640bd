"""Runs the tests of the CPU kernels on every code path of this CPU below its own.

PyTorch is held to the same instructions, since its errors are the yardstick.
"""

import os
import subprocess
import sys

from pvt_kernels._C import cpu

# what ATen, MKL and oneDNN call a code path's instructions
PYTORCH = {
    "portable": ("default", "SSE4_2", "SSE41"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512", "AVX512_CORE"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
TESTS = (
    *("tests/ops", "tests/test_layers.py", "-k", "cpu or any_shape"),
    *("--numprocesses", "logical", "--dist", "loadfile", "--quiet"),
)


def main() -> int:
    failed = []
    for path in cpu.capabilities()[:-1]:
        print(f"==> {path}", flush=True)
        held = dict(zip(VARIABLES, PYTORCH[path], strict=True))
        environment = {**os.environ, **held, "PVT_KERNELS_CPU_CAPABILITY": path}
        command = [sys.executable, "-m", "pytest", *TESTS]
        if subprocess.run(command, env=environment).returncode != 0:
            failed.append(path)
    if failed:
        print(f"failed on {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
