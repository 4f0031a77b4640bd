"""The command check."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import asdict

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pvt_kernels import arguments
from pvt_kernels.benchmarking import environment
from pvt_kernels.checking.finding import FAILED, Finding
from pvt_kernels.checking.jobs import Job, Plan, jobs, plan_for
from pvt_kernels.checking.report import line, passed, print_report, save, summary
from pvt_kernels.checking.run import run
from pvt_kernels.checking.warm_up import warm_up

# of the tables, and so of a bug report
WIDTH = 100


def _check(options: argparse.Namespace, console: Console) -> int:
    begin = time.monotonic()
    console = Console(width=min(console.width, WIDTH))
    plan = plan_for(options.device, options.quick)
    facts = environment.facts(torch.device(options.device))
    findings: list[Finding] = []
    console.print(f"Checking on {facts['device']}.", markup=False)
    if plan.device == "cuda":
        console.print("Compiling the kernels, in several processes ...")
        warm_up(plan)
    try:
        _run(plan, findings, console)
    finally:
        # with what was found before an interruption too
        if options.json is not None:
            facts["seconds"] = round(time.monotonic() - begin, 1)
            save(options.json, facts, asdict(plan), findings)
    print_report(findings, console)
    versions = environment.versions().items()
    made = ", ".join(f"{name} {version or 'is not installed'}" for name, version in versions)
    console.print(f"{made}, on {facts['device']}", markup=False)
    took = f"{time.monotonic() - begin:.0f} s"
    good = passed(findings)
    console.print(
        f"{'PASSED' if good else 'FAILED'}: {summary(findings)}; {took}",
        style="bold green" if good else "bold red",
    )
    return 0 if good else 1


def _run(plan: Plan, findings: list[Finding], console: Console) -> None:
    """A terminal shows a bar, and what is running; elsewhere each job is a line."""
    total = len(jobs(plan))
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=10),
               MofNCompleteColumn(), TimeElapsedColumn())  # fmt: skip
    progress = Progress(*columns, console=console, transient=True)
    with progress if console.is_terminal else nullcontext():
        task = progress.add_task("starting", total=total)

        def begins(number: int, job: Job) -> None:
            progress.update(task, completed=number, description=job.label)

        for number, (job, found) in enumerate(run(jobs, plan, begins), start=1):
            findings += found
            if not console.is_terminal:
                console.print(f"[{number}/{total}] {job.label}: {summary(found)}", markup=False)
            for finding in found:
                if finding.status == FAILED:
                    text = f"FAILED: {line(finding)}"
                    console.print(text, style="red", markup=False, soft_wrap=True)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "check",
        help="whether the kernels are right on this machine",
        description="Runs every op of every backend that can run here, forward and backward, "
        "against float64: true shapes and odd ones, in memory of NaN; runs them again for the "
        "same bits; on a GPU in CUDA graphs, on a side stream, and for memory. Then times the "
        "layers of PVT beside PyTorch's. Ends with status 1 if anything fails.",
    )
    command.set_defaults(run=_check)
    command.add_argument(
        "--device",
        type=arguments.device,
        default=arguments.default_device(),
        metavar="cpu|cuda",
        help="default cuda if there is a GPU, else cpu",
    )
    command.add_argument(
        "--quick", action="store_true", help="the layers of images of 224x224, not 800x1216"
    )
    command.add_argument(
        "--json",
        type=arguments.new_file,
        metavar="FILE",
        help="for versions, device and every figure, to attach to a bug report; default none",
    )
