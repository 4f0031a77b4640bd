"""What the figures were measured on."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pvt_kernels._C import cpu, cuda_device
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
# of nvidia-smi
GPU_STATE = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.limit",
    "power.draw",
    "temperature.gpu",
)

# Microarchitectures of servers' CPUs by their family and model, as /proc/cpuinfo has them: what the
# name leaves open in a virtual machine.
_ZEN4 = (range(0x10, 0x20), range(0x60, 0x80), range(0xA0, 0xB0))
_INTEL = {
    0x3F: "Haswell", 0x4F: "Broadwell", 0x55: "Skylake or Cascade Lake", 0x6A: "Ice Lake",
    0x6C: "Ice Lake", 0x8F: "Sapphire Rapids", 0xCF: "Emerald Rapids", 0xAD: "Granite Rapids",
}  # fmt: skip


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


def microarchitecture() -> str | None:
    """Of an AMD or Intel server's CPU; the family and model of another; None if none is told."""
    fields = {
        name: re.search(rf"^{name}\s*:\s*(\S+)$", _cpuinfo(), re.MULTILINE)
        for name in ("vendor_id", "cpu family", "model")
    }
    if not all(fields.values()):
        return None
    vendor, family, model = (match[1] for match in fields.values())
    family, model = int(family), int(model)
    known = None
    if vendor == "AuthenticAMD":
        zen3 = "Zen 4" if any(model in models for models in _ZEN4) else "Zen 3"
        known = {23: "Zen 2" if model >= 0x30 else "Zen", 25: zen3, 26: "Zen 5"}.get(family)
    elif vendor == "GenuineIntel" and family == 6:
        known = _INTEL.get(model)
    return known or f"family {family} model {model}"


def cpu_kernels() -> str:
    """The code path that this package's CPU kernels run."""
    return cpu.capability()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its instruction set and number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    made = ", ".join(filter(None, (microarchitecture(), cpu_kernels())))
    return f"{cpu_model()} ({made}), {threads} thread{'s' if threads > 1 else ''}"


def slug(name: str) -> str:
    """A name as a folder's: lower-case letters, digits and dashes."""
    name = re.sub(r"\((?:r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def facts(device: torch.device) -> dict[str, object]:
    """Versions, CPU and GPU, their code paths, and the date."""
    found: dict[str, object] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "microarchitecture": microarchitecture(),
        "cpu_flags": cpu_flags(),
        "cpu_kernels": cpu_kernels(),
        "pytorch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "device": device_name(device),
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {
            "compute_capability": f"{major}.{minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cuda_kernels": cuda_device(torch.cuda.current_device())["code"],
            **gpu_state(),
        }
    return found


def collect(device: torch.device, command: str, cases: int) -> dict:
    """What results.json says of a run: `facts`, and what only the extra `bench` can tell.

    Args:
        command: that measures.
        cases: how many it measures.
    """
    return {
        "command": command,
        "cases": cases,
        **facts(device),
        "cores": require("psutil").cpu_count(logical=False),
        "memory_bytes": total_memory(device),
    }


def gpu_state() -> dict[str, str]:
    """Driver, clocks and power of the first GPU as nvidia-smi has them; changes nothing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_STATE)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"nvidia-smi": str(error)}
    values = [value.strip() for value in lines.partition("\n")[0].split(",")]
    if len(values) != len(GPU_STATE):
        return {"nvidia-smi": f"printed {lines.strip()[:200]!r}"}
    return dict(zip(GPU_STATE, values, strict=True))


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""
