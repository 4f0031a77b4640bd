"""Counters of the kernels of stage 1's training step, where Nsight Compute is there."""

from __future__ import annotations

import csv
import io
import sys

from steps.record import REHEARSE, record, run_command, seconds_left, short
from steps.sanitizer import tool

BACKENDS = ("triton", "cuda") if not REHEARSE else ("cpu",)
# a name for each of ncu's metrics
METRICS = {
    "gpu__time_duration.sum": "ns",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM %",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "sm__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "dram__bytes_read.sum": "read B",
    "dram__bytes_write.sum": "written B",
    "lts__t_bytes.sum": "L2 B",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__waves_per_multiprocessor": "waves",
}
# not every GPU has these under this name, and ncu ends where one is not there
UNSURE = {"sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"}
MOST_KERNELS = 40


def profile(program: str | None, backend: str) -> None:
    target = [sys.executable, "-m", "steps.target", "--backend", backend, "--dtypes", "bf16"]
    options = [program, "--clock-control", "none", "--cache-control", "none",
               "--profile-from-start", "off", "--launch-count", str(MOST_KERNELS),
               "--csv", "--page", "raw", "--print-units", "base"]  # fmt: skip
    rows: list[dict[str, str]] = []
    for metrics in (METRICS, METRICS.keys() - UNSURE):
        watched = [] if program is None else [*options, "--metrics", ",".join(metrics)]
        status, output = run_command([*watched, *target], seconds_left() - 2)
        print(output[-3000:], flush=True)
        rows = rows_of(output)
        if rows or program is None:
            break
    for row in rows:
        record("counters", backend=backend, **row)
    if status != 0 or (program is not None and not rows):
        record("failed", part=f"ncu of {backend}", status=status, error=short(output[-400:], 400))


def rows_of(output: str) -> list[dict[str, str]]:
    """A kernel's counters each, of what ncu prints beside the program's own lines."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    found = []
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        # the first has the units
        if row.get("ID"):
            counters = {name: row[metric] for metric, name in METRICS.items() if metric in row}
            found.append({"kernel": row.get("Kernel Name", "")[:60], **counters})
    return found


def main() -> None:
    program = None if REHEARSE else tool("ncu")
    if program is None and not REHEARSE:
        record("left out", part="ncu", reason="ncu is not there")
        return
    for backend in BACKENDS:
        if seconds_left() < 12:
            record("dropped", first=f"ncu of {backend}", parts=1)
            return
        profile(program, backend)


if __name__ == "__main__":
    main()
