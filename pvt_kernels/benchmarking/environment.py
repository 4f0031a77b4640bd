"""What the figures were measured on."""

from __future__ import annotations

import platform
import re
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.memory import total_memory

PACKAGES = ("torch", "triton", "pvt_kernels")
# instruction sets that decide how fast matrix products and exponentials are
CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
)


def versions() -> dict[str, str | None]:
    """Of Python and the packages that matter; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def cpu_model() -> str:
    """As the CPU names itself."""
    match = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those of CPU_FLAGS that the CPU has, where the system tells."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    flags = match[1].split() if match else []
    return [flag for flag in CPU_FLAGS if flag in flags]


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"


def slug(name: str) -> str:
    """A name as a folder's: lower-case letters, digits and dashes."""
    name = re.sub(r"\((?:r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def collect(device: torch.device) -> dict:
    """Versions, CPU, GPU, memory and date, for results.json."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cores": require("psutil").cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "device": device_name(device),
        "memory_bytes": total_memory(device),
    }


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
