"""The command line: python -m pvt_kernels info | bench | plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

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

from pvt_kernels import models
from pvt_kernels.benchmarking import environment, info
from pvt_kernels.benchmarking.cases import DTYPES, QUICK_SIZE, Suite, suite
from pvt_kernels.benchmarking.model import GPU_MODELS, print_model
from pvt_kernels.benchmarking.plots import write_plots
from pvt_kernels.benchmarking.report import markdown, print_tables, wide_console
from pvt_kernels.benchmarking.results import Results
from pvt_kernels.benchmarking.runner import run_case
from pvt_kernels.benchmarking.shapes import STAGES, parse_size
from pvt_kernels.benchmarking.timing import matmul_gflops

RESULTS_FOLDER = Path("benchmarks/results")
# linear SRA pools to 7 x 7: the peers compute another layer
MODELS = tuple(name for name in models.names() if not name.endswith("linear"))
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = wide_console()
    try:
        options.run(options, console)
    except (ImportError, OSError, ValueError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    return 0


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pvt_kernels", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="info | bench | plot")

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
    command.add_argument("--device", type=_device, default=default_device(), metavar="cpu|cuda")
    command.add_argument("--dtype", nargs="+", choices=DTYPES, type=str)
    command.add_argument("--sizes", nargs="+", type=_typed(parse_size), metavar="HxW")
    command.add_argument("--stages", nargs="+", type=int, choices=STAGES)
    command.add_argument("--models", nargs="+", choices=MODELS)
    command.add_argument("--batch", type=_typed(_positive), default=1, metavar="N")
    command.add_argument(
        "--model",
        choices=GPU_MODELS,
        help="measure nothing: print what the kernels would take at least on this GPU",
    )
    command.add_argument("--output", type=Path, metavar="DIR", help=f"else in {RESULTS_FOLDER}")

    command = commands.add_parser("plot", help="draw the plots of a results.json again")
    command.set_defaults(run=_plot)
    command.add_argument("results", type=Path, metavar="RESULTS.json")
    return parser


def default_device() -> str:
    """cuda if there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device(text: str) -> str:
    accepted = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if text not in accepted:
        hint = " (PyTorch sees no GPU)" if text == "cuda" else ""
        raise argparse.ArgumentTypeError(f"given {text!r}, accepted {' or '.join(accepted)}{hint}")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"given {text!r}, accepted a whole number of at least 1")
    return int(text)


def _typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """As argparse wants it, to show the message."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
