"""Runs jobs in a process of their own, so that one that kills it takes no other with it."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TypeVar

import torch

from pvt_kernels.benchmarking.runner import one_line
from pvt_kernels.checking.finding import CRASH, FAILED, Finding
from pvt_kernels.checking.jobs import Job

P = TypeVar("P")
# A kernel that never ends must not keep the rest from being checked.
LONGEST_S, START_S = 600.0, 60.0
# to end by itself, or when asked to
END_S = 10.0
# memory that PyTorch keeps, above which it is given back between jobs
KEPT_BYTES = 8e9


def run(
    make_jobs: Callable[[P], list[Job]],
    plan: P,
    begins: Callable[[int, Job], None] = lambda number, job: None,
    longest_s: float = LONGEST_S,
) -> Iterator[tuple[Job, list[Finding]]]:
    """Each job with what it found; whatever it raises or dies of is a finding too.

    After a job that ended the process, or after which the GPU answers no more, the next one runs
    in a new process.

    Args:
        make_jobs: a function of a module, which makes the same list of a plan in every process.
        begins: told which job is running, by its number from 0.
        longest_s: after so many seconds a job is given up.
    """
    listed = make_jobs(plan)
    first = 0
    while first < len(listed):
        for number, findings in _in_a_process(make_jobs, plan, first, listed, begins, longest_s):
            yield listed[number], findings
            first = number + 1


def _in_a_process(
    make_jobs: Callable[[P], list[Job]],
    plan: P,
    first: int,
    listed: list[Job],
    begins: Callable[[int, Job], None],
    longest_s: float,
) -> Iterator[tuple[int, list[Finding]]]:
    """The jobs from the first one on, to the last or to one that ends the process."""
    # spawned: a fork would share the parent's threads and GPU
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, make_jobs, plan, first))
    process.start()
    sender.close()
    try:
        for number in range(first, len(listed)):
            begins(number, listed[number])
            # a new process imports PyTorch first
            limit = longest_s + (START_S if number == first else 0)
            answer = _received(receiver, process, limit)
            if isinstance(answer, str):
                yield number, [_crash(listed[number], answer)]
                return
            findings, lost = answer
            yield number, findings
            if lost:
                return
        process.join(timeout=END_S)
    finally:
        for end in (process.terminate, process.kill):
            if process.is_alive():
                end()
                process.join(timeout=END_S)
        receiver.close()


def _received(
    receiver: Connection, process: SpawnProcess, limit: float
) -> tuple[list[Finding], bool] | str:
    """What a job found, and whether the GPU is lost; or why nothing came."""
    if not receiver.poll(limit):
        return f"no answer within {limit:.0f} s"
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return f"the process ended with status {process.exitcode}"


def _work(sender: Connection, make_jobs: Callable[[P], list[Job]], plan: P, first: int) -> None:
    # a crash says where
    faulthandler.enable()
    listed = make_jobs(plan)
    # a capture of a CUDA graph collects garbage: not what the imports left
    gc.collect()
    gc.freeze()
    for job in listed[first:]:
        findings = guarded(job)
        lost = any(f.status == FAILED for f in findings) and _device_is_lost()
        sender.send((findings, lost))
        if lost:
            # no clean-up, which would wait for the device
            os._exit(1)
        _release()


def guarded(job: Job) -> list[Finding]:
    """What a job found; what it raised is a finding."""
    try:
        return job.run()
    except Exception as error:
        return [_crash(job, one_line(error))]


def _crash(job: Job, why: str) -> Finding:
    return Finding(CRASH, job.label, "", None, None, FAILED, why)


def _device_is_lost() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        return (torch.ones(1, device="cuda") + 1).item() != 2
    except Exception:
        return True


def _release() -> None:
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > KEPT_BYTES:
        gc.collect()
        torch.cuda.empty_cache()
