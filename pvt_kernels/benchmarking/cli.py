"""The commands info, bench and plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pvt_kernels import arguments, models
from pvt_kernels.benchmarking import environment, info
from pvt_kernels.benchmarking.cases import DTYPES, QUICK_SIZE, Suite, suite
from pvt_kernels.benchmarking.model import GPU_MODELS, print_model
from pvt_kernels.benchmarking.plots import write_plots
from pvt_kernels.benchmarking.report import markdown, print_tables
from pvt_kernels.benchmarking.results import Results
from pvt_kernels.benchmarking.runner import run_case
from pvt_kernels.benchmarking.shapes import STAGES, parse_size
from pvt_kernels.benchmarking.timing import matmul_gflops

RESULTS_FOLDER = Path("benchmarks/results")
# linear SRA pools to 7 x 7: the peers compute another layer
MODELS = tuple(name for name in models.names() if not name.endswith("linear"))


def run_suite(chosen: Suite, results: Results, console: Console, save: Callable[[], None]) -> None:
    """Run every case, adding to `results`, and call `save` after each."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=len(chosen.cases))
        for case in chosen.cases:
            results.measurements += run_case(
                case, chosen, lambda text: progress.update(task, description=text)
            )
            save()
            progress.advance(task)


def _bench(options: argparse.Namespace, console: Console) -> None:
    if options.model:
        _print_model(options, console)
        return
    device = torch.device(options.device)
    chosen = suite(
        options.quick,
        options.device,
        dtypes=options.dtype,
        sizes=options.sizes,
        stages=options.stages,
        models=options.models,
        batch=options.batch,
    )
    folder = options.output or RESULTS_FOLDER / environment.slug(environment.device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(environment.collect(device), [])
    dtypes = dict.fromkeys(case.dtype for case in chosen.cases)
    results.environment["matmul_gflops"] = {d: matmul_gflops(DTYPES[d], device) for d in dtypes}
    path = folder / "results.json"
    run_suite(chosen, results, console, lambda: results.save(path))
    print_tables(results, console)
    (folder / "table.md").write_text(markdown(results))
    written = [path, folder / "table.md", *write_plots(results, folder)]
    console.print("Written:", *map(str, written), sep="\n  ", markup=False)


def _print_model(options: argparse.Namespace, console: Console) -> None:
    gpu = GPU_MODELS[options.model]
    sizes = options.sizes or [QUICK_SIZE]
    stages = options.stages or list(STAGES)
    for dtype in options.dtype or ["fp16"]:
        print_model(console, gpu, DTYPES[dtype], sizes, stages, options.batch)


def _plot(options: argparse.Namespace, console: Console) -> None:
    results = Results.load(options.results)
    for path in write_plots(results, options.results.parent):
        console.print(str(path), markup=False)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser("info", help="versions, devices, backends and models")
    command.set_defaults(run=lambda _, console: info.print_info(console))

    command = commands.add_parser(
        "bench",
        help="time and memory of attention layers and backbones",
        description="Compares naive attention, published, SDPA and compiled SRA, and this "
        "package's backends. Takes about 25 minutes on two cores; --quick two.",
    )
    command.set_defaults(run=_bench)
    command.add_argument("--quick", action="store_true", help="one size, fp32, pvt_tiny")
    command.add_argument(
        "--device", type=arguments.device, default=arguments.default_device(), metavar="cpu|cuda"
    )
    command.add_argument("--dtype", nargs="+", choices=DTYPES, type=str)
    command.add_argument("--sizes", nargs="+", type=arguments.typed(parse_size), metavar="HxW")
    command.add_argument("--stages", nargs="+", type=int, choices=STAGES)
    command.add_argument("--models", nargs="+", choices=MODELS)
    command.add_argument("--batch", type=arguments.whole(1), default=1, metavar="N")
    command.add_argument(
        "--model",
        choices=GPU_MODELS,
        help="measure nothing: print what the kernels would take at least on this GPU",
    )
    command.add_argument("--output", type=Path, metavar="DIR", help=f"else in {RESULTS_FOLDER}")

    command = commands.add_parser("plot", help="draw the plots of a results.json again")
    command.set_defaults(run=_plot)
    command.add_argument("results", type=Path, metavar="RESULTS.json")
