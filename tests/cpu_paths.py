"""Runs the tests of the CPU kernels on code paths that `make test` doesn't.

    python -m tests.cpu_paths
    python -m tests.cpu_paths amx_bf16

runs them on every one of this CPU below its own, or on that of AMX by a stand-in for its
instructions. PyTorch is held to the same instructions, since its errors are the yardstick.
"""

import os
import subprocess
import sys

from pvt_kernels._C import cpu

from .csrc import amx_module

# what ATen, MKL and oneDNN call a code path's instructions
PYTORCH = {
    "portable": ("default", "SSE4_2", "SSE41"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512", "AVX512_CORE"),
    "avx512_bf16": ("avx512", "AVX512", "AVX512_CORE_BF16"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
# they have kernels for bfloat16 alone, beside those of the path below for the other dtypes
BF16_ALONE = ("avx512_bf16", "amx_bf16")
TESTS = ("tests/ops", "tests/test_layers.py", "--numprocesses", "logical", "--dist", "loadfile")


def passes(path: str, variables: dict[str, str], *options: str) -> bool:
    found = cpu.capabilities()
    # where every path above has bfloat16 alone, `make test` runs this one's other kernels
    above = found[found.index(path) + 1 :] if path in found else []
    alone = all(name in BF16_ALONE for name in above)
    chosen = "(cpu or any_shape)"
    if alone:
        chosen += " and not torch.float32 and not torch.float16"
    print(f"==> {path}: {chosen}", flush=True)
    environment = {**os.environ, **variables, "PVT_KERNELS_CPU_CAPABILITY": path}
    command = [sys.executable, "-m", "pytest", *options, *TESTS, "-k", chosen, "--quiet"]
    return subprocess.run(command, env=environment).returncode == 0


def main() -> int:
    if sys.argv[1:] == ["amx_bf16"]:
        stand_in = {amx_module.VARIABLE: str(amx_module.build())}
        return int(not passes("amx_bf16", stand_in, "-p", amx_module.__name__))
    failed = []
    for path in cpu.capabilities()[:-1]:
        if not passes(path, dict(zip(VARIABLES, PYTORCH[path], strict=True))):
            failed.append(path)
    if failed:
        print(f"failed on {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
