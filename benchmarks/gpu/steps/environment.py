"""What is measured on what: versions, the GPU and its clocks as found, the tools at hand."""

from __future__ import annotations

import shutil
from importlib.metadata import distributions

from pvt_kernels.benchmarking import environment
from steps.device import DEVICE
from steps.record import record

PACKAGES = ("torch", "triton", "timm", "transformers", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "nvidia-smi")


def main() -> None:
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    packages = {name: installed[name] for name in PACKAGES if name in installed}
    tools = {name: shutil.which(name) for name in TOOLS}
    record("environment", **environment.facts(DEVICE), packages=packages, tools=tools)


if __name__ == "__main__":
    main()
