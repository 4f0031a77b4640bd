"""How a step writes its results: JSON lines, each on disk before the next thing is tried.

Standard library only, since the step that builds the package needs no PyTorch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REHEARSE = os.environ.get("GPU_RUN_REHEARSE") == "1"
WORK = Path(os.environ.get("GPU_RUN_WORK", "/tmp/gpu-run"))
_STEP = os.environ.get("GPU_RUN_STEP", "by hand")
_RESULTS = os.environ.get("GPU_RUN_RESULTS")
_DEADLINE = float(os.environ.get("GPU_RUN_DEADLINE", "inf"))
_BEGIN = float(os.environ.get("GPU_RUN_BEGIN", str(time.time())))

if "GPU_RUN_STEP" in os.environ:
    # as an exception, so that what the step started ends with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if "GPU_RUN_DEADLINE" in os.environ:
        # where a step hangs, shortly before it is stopped
        faulthandler.dump_traceback_later(max(1.0, _DEADLINE + 1 - time.time()))


def seconds_left() -> float:
    """Until this step is stopped."""
    return _DEADLINE - time.time()


def record(kind: str, **fields: object) -> None:
    """Append one line to the results; the step and the seconds since the start are added."""
    entry = {"step": _STEP, "kind": kind, "t": round(time.time() - _BEGIN, 1), **fields}
    line = json.dumps(entry, default=str)
    print("RECORD", line, flush=True)
    if _RESULTS is None:
        return
    # one write of one line: several processes may append at once
    file = os.open(_RESULTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (line + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def short(error: BaseException | str, most: int = 300) -> str:
    """An error as one line."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."


def run_command(
    command: list[str], limit: float, env: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """Exit status (None: not there, or stopped at the limit), and all that it printed."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=env, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return None, short(error)
    try:
        output, _ = process.communicate(timeout=max(1.0, limit))
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, f"stopped after {limit:.0f} s"
    finally:
        end_group(process)


def end_group(process: subprocess.Popen) -> None:
    """A process that leads a session of its own, and all that it started and left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue
