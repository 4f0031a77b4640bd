"""What is installed, what can run here, and if not why."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from pvt_kernels import backends, models
from pvt_kernels._C import build_info, cpu, cpu_features, cuda_devices
from pvt_kernels.benchmarking import environment
from pvt_kernels.benchmarking.cases import DTYPES
from pvt_kernels.benchmarking.contenders import backend_reasons

MODEL_SIZE = (224, 224)


def print_info(console: Console) -> None:
    """Versions, what was compiled, devices, backends and models."""
    console.print(_facts())
    console.print(_backend_table())
    console.print(_model_table())


def present_devices() -> list[torch.device]:
    """The CPU, and the GPU that PyTorch uses."""
    names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [torch.device(name) for name in names]


def _facts() -> Table:
    build = build_info()
    features = [name for name, present in cpu_features().items() if present]
    compiled = f"{build['version']}, {build['compiler']}, {build['build_type']}"
    if build["cuda"]:
        cuda = f"CUDA {build['cuda']} for {', '.join(build['cuda_archs'])}"
        # the last is PTX: whatever is newer than the others compiles it
        cuda += ", which drivers compile for other GPUs at the first call"
        if (arch := build["cuda_treat_as_arch"]) is not None:
            cuda += f"; every GPU runs the kernels for compute capability {arch / 10}"
            cuda += f" (PVT_KERNELS_TREAT_AS_ARCH={arch})"
    else:
        cuda = f"without CUDA: {build['cuda_missing']}"
    table = Table(title="Installation", show_header=False)
    for name, version in environment.versions().items():
        table.add_row(name, version or "not installed")
    table.add_row("compiled", f"{compiled}; {cuda}")
    table.add_row("CPU", f"{environment.cpu_model()}; {', '.join(features) or 'no features'}")
    table.add_row("CPU kernels", f"{cpu.capability()}, of {', '.join(cpu.capabilities())}")
    table.add_row("GPUs", _gpus())
    return table


def _gpus() -> str:
    try:
        devices = cuda_devices()
    except RuntimeError as error:
        return f"none: {error}"
    lines = []
    for device in devices:
        major, minor = device["compute_capability"]
        code = f"runs {device['code']}" if device["code"] else device["code_missing"]
        lines.append(f"{device['name']}, compute capability {major}.{minor}, {code}")
    return "\n".join(lines) or "none"


def _backend_table() -> Table:
    devices = present_devices()
    table = Table("backend", *(str(device) for device in devices), title="Backends")
    for name in backends.BACKEND_NAMES:
        table.add_row(name, *(_availability(name, device) for device in devices))
    return table


def _availability(name: str, device: torch.device) -> str:
    reasons = {key: backend_reasons(name, device, dtype) for key, dtype in DTYPES.items()}
    running = [key for key, why in reasons.items() if not why]
    lines = [f"runs in {', '.join(running)}"] if running else []
    # a reason that holds for several dtypes is said once
    for reason in dict.fromkeys(reason for why in reasons.values() for reason in why):
        concerned = [key for key, why in reasons.items() if reason in why]
        prefix = "" if len(concerned) == len(DTYPES) else f"{', '.join(concerned)}: "
        lines.append(prefix + reason)
    return "\n".join(lines)


def _model_table() -> Table:
    height, width = MODEL_SIZE
    table = Table(
        "model", "parameters, M", "GFLOPs", title=f"Models (multiply-adds at {height}x{width})"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name in models.names():
        with torch.device("meta"):
            model = models.create(name)
        parameters = sum(p.numel() for p in model.parameters())
        flops = models.count_flops(model, MODEL_SIZE)
        table.add_row(name, f"{parameters / 1e6:.1f}", f"{flops / 1e9:.1f}")
    return table
