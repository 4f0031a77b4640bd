"""Memory: what is free, what a call needs at its peak, and what does not fit.

On a CPU the peak is measured in a fresh process, as the growth of its resident memory. A fork
server that has imported PyTorch already makes such a process in a fraction of a second.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from pvt_kernels.benchmarking.cases import Case
from pvt_kernels.benchmarking.contenders import COMPILED, Contender
from pvt_kernels.benchmarking.extras import require
from pvt_kernels.benchmarking.timing import seconds
from pvt_kernels.benchmarking.workloads import step, workload

# Room left beside a call's need, as a part of it.
MARGIN = 0.1
WARM_UP_SIZE = (64, 64)

# of glibc's malloc.h: larger blocks are mapped on their own, and returned when freed
_M_MMAP_THRESHOLD = -3

_CGROUP = Path("/sys/fs/cgroup")
# (limit, usage, statistics) of version 2 and 1
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


@dataclass(frozen=True)
class Peak:
    """One measured call: growth of memory beyond weights and input, and its time."""

    bytes: int
    seconds: float


def total_memory(device: torch.device) -> int:
    """Bytes that a program may use on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    total = require("psutil").virtual_memory().total
    return min(total, *(limit for limit, _ in _cgroup_limits()), total)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device, without swapping."""
    if device.type == "cuda":
        # what PyTorch has reserved but not handed out is free as well
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    available = require("psutil").virtual_memory().available
    return min(available, *(limit - used for limit, used in _cgroup_limits()), available)


def shortage(needed: int, device: torch.device) -> str | None:
    """Why a call that needs so many bytes does not fit; None if it does."""
    free = free_memory(device)
    if needed * (1 + MARGIN) <= free:
        return None
    return f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"


def peak(case: Case, contender: Contender) -> Peak:
    """Measure the peak of one call of a contender.

    Raises:
        RuntimeError: the call failed, or the process was killed.
    """
    if case.device == "cuda":
        return _peak_on_gpu(case, contender)
    return in_fresh_process(_measure_in_child, case, contender)


def in_fresh_process(function: Callable[..., Peak], *arguments: object) -> Peak:
    """What a module-level function returns in a process of its own.

    Raises:
        RuntimeError: it raised, with what it said, or the process was killed.
    """
    server = _fork_server()
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = None
    except KeyboardInterrupt:
        process.kill()
        raise
    process.join()
    if answer is None:
        raise RuntimeError(
            f"the measuring process ended with status {process.exitcode}"
            + (" (killed: out of memory?)" if process.exitcode == -9 else "")
        )
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


def growth(call: Callable[[], object], device: torch.device) -> Peak:
    """Run once more, and see how far the peak of memory rises: on a CPU this process's."""
    if device.type != "cuda":
        return resident_growth(call)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    duration = seconds(call, device)
    return Peak(torch.cuda.max_memory_allocated(device) - before, duration)


def resident_growth(call: Callable[[], object]) -> Peak:
    """Run once, and see how far the peak of this process's resident memory rises."""
    gc.collect()
    if sys.platform != "linux":
        import resource

        def maximum() -> int:
            unit = 1 if sys.platform == "darwin" else 1024
            return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = maximum()
        duration = seconds(call, torch.device("cpu"))
        return Peak(maximum() - before, duration)
    map_large_blocks()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    duration = seconds(call, torch.device("cpu"))
    return Peak(_status("VmHWM") - before, duration)


def map_large_blocks() -> None:
    """Let glibc map blocks of a megabyte and more on their own, and return them when freed.

    Else it raises the threshold as it goes, and keeps what was freed for later, or not. Best before
    anything large was freed: such gaps are filled first, and stay resident then.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, usage) in bytes of the control group that the process is in, if it has a limit."""
    for limit_file, usage_file, statistics_file in _CGROUP_FILES:
        try:
            limit = (_CGROUP / limit_file).read_text(encoding="utf-8").strip()
            usage = int((_CGROUP / usage_file).read_text(encoding="utf-8"))
            statistics = (_CGROUP / statistics_file).read_text(encoding="utf-8").split()
        except FileNotFoundError:
            continue
        if limit != "max":
            # cached files are dropped when memory is asked for
            cached = int(statistics[statistics.index("inactive_file") + 1])
            return [(int(limit), usage - cached)]
    return []


@cache
def _fork_server() -> ForkServerContext:
    # PyTorch's OpenMP threads do not survive a fork: the server imports, and computes nothing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._inductor.compile_fx"])
    # Ctrl-C reaches all processes of a terminal: the server and its children leave it to this one
    with _ignored_interruption():
        forkserver.ensure_running()
    return context


@contextmanager
def _ignored_interruption() -> Iterator[None]:
    """Within it processes start that ignore SIGINT; signals can be set in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(sender: Connection, function: Callable[..., Peak], arguments: tuple) -> None:
    try:
        sender.send(function(*arguments))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def _measure_in_child(case: Case, contender: Contender) -> Peak:
    map_large_blocks()
    work = workload(case, real_input=False)
    module = work.build(contender)
    with contender.context():
        if contender.kind == COMPILED:
            # it compiles for the shape
            step(module, work.inputs)
            work.clear(module)
        else:
            small = workload(replace(case, size=WARM_UP_SIZE), real_input=False)
            step(small.build(contender), small.inputs)
            del small
        return resident_growth(lambda: step(module, work.inputs))


def _peak_on_gpu(case: Case, contender: Contender) -> Peak:
    device = torch.device(case.device)
    work = workload(case, real_input=False)
    module = work.build(contender)
    with contender.context():
        step(module, work.inputs)
        work.clear(module)
        return growth(lambda: step(module, work.inputs), device)
