"""The commands info, bench, bench-patch, study and plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pvt_kernels import arguments, models
from pvt_kernels.benchmarking import environment, info, study
from pvt_kernels.benchmarking.cases import DTYPES, QUICK_SIZE, Case, Suite, patched_suite, suite
from pvt_kernels.benchmarking.live_models import LIVE_MODELS
from pvt_kernels.benchmarking.model import GPU_MODELS, print_model
from pvt_kernels.benchmarking.plots import write_plots
from pvt_kernels.benchmarking.report import markdown, print_tables
from pvt_kernels.benchmarking.results import Measurement, Results
from pvt_kernels.benchmarking.runner import Progress as Told
from pvt_kernels.benchmarking.runner import run_case
from pvt_kernels.benchmarking.shapes import STAGES, parse_size
from pvt_kernels.benchmarking.timing import matmul_gflops

RESULTS_FOLDER = Path("benchmarks/results")
# linear SRA pools to 7 x 7: the peers compute another layer
MODELS = tuple(name for name in models.names() if not name.endswith("linear"))

# (case, what was measured before it, whom to tell what is running)
Run = Callable[[Case, list[Measurement], Told], list[Measurement]]


def _describe(progress: Progress, task: TaskID, text: str) -> None:
    progress.update(task, description=text)


def run_cases(
    cases: Sequence[Case],
    run: Run,
    results: Results,
    console: Console,
    save: Callable[[], None],
) -> None:
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
        task = progress.add_task("starting", total=len(cases))
        for case in cases:
            told = partial(_describe, progress, task)
            results.measurements += run(case, results.measurements, told)
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
    names = ("results.json", "table.md")
    _run_and_write(chosen.cases, _of(chosen), device, options.output, names, console)


def _bench_patch(options: argparse.Namespace, console: Console) -> None:
    chosen = patched_suite(
        options.quick,
        options.device,
        dtypes=options.dtype or ["fp32"],
        sizes=options.sizes,
        models=options.models,
        batch=options.batch,
    )
    device = torch.device(options.device)
    names = ("patched.json", "patched.md")
    _run_and_write(chosen.cases, _of(chosen), device, options.output, names, console)


def _study(options: argparse.Namespace, console: Console) -> None:
    chosen = study.cases(options.sizes, options.dtype, options.batch, options.device)
    device = torch.device(options.device)
    names = ("study.json", "study.md")
    _run_and_write(chosen, study.run_case, device, options.output, names, console)


def _of(chosen: Suite) -> Run:
    return lambda case, _, told: run_case(case, chosen, told)


def _run_and_write(
    cases: Sequence[Case],
    run: Run,
    device: torch.device,
    folder: Path | None,
    names: tuple[str, str],
    console: Console,
) -> None:
    """Measure, print, and write the samples and tables under `names`, and the plots."""
    folder = folder or RESULTS_FOLDER / environment.slug(environment.device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(environment.collect(device), [])
    dtypes = dict.fromkeys(case.dtype for case in cases)
    results.environment["matmul_gflops"] = {d: matmul_gflops(DTYPES[d], device) for d in dtypes}
    samples, table = (folder / name for name in names)
    run_cases(cases, run, results, console, lambda: results.save(samples))
    print_tables(results, console)
    table.write_text(markdown(results))
    written = [samples, table, *write_plots(results, folder)]
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
        "package's backends. Takes over an hour on two cores; --quick two minutes.",
    )
    command.set_defaults(run=_bench)
    _add_common(command, quick="one size, fp32, pvt_tiny", models=MODELS)
    command.add_argument("--stages", nargs="+", type=int, choices=STAGES)
    command.add_argument(
        "--model",
        choices=GPU_MODELS,
        help="measure nothing: print what the kernels would take at least on this GPU",
    )

    command = commands.add_parser(
        "bench-patch",
        help="other libraries' models before and after patch()",
        description="Compares timm's and transformers' models as they are with the same ones "
        "patched, forward and training step. Takes about 20 minutes on two cores; --quick two.",
    )
    command.set_defaults(run=_bench_patch)
    _add_common(command, quick="two models, one size each", models=tuple(LIVE_MODELS))

    command = commands.add_parser(
        "study",
        help="operations, time and memory of backbones by resolution",
        description="Compares PVT-Small with and without its pyramid and its spatial reduction, a "
        "ViT and a ResNet-50. What would take too long is counted alone. Takes three minutes on "
        "two cores.",
    )
    command.set_defaults(run=_study)
    _add_inputs(command)
    command.add_argument("--dtype", choices=DTYPES, default="fp32")
    command.add_argument(
        "--sizes", nargs="+", type=arguments.typed(parse_size), default=study.SIZES, metavar="HxW"
    )

    command = commands.add_parser("plot", help="draw the plots of a results.json again")
    command.set_defaults(run=_plot)
    command.add_argument("results", type=Path, metavar="RESULTS.json")


def _add_common(command: argparse.ArgumentParser, quick: str, models: tuple[str, ...]) -> None:
    command.add_argument("--quick", action="store_true", help=quick)
    command.add_argument("--dtype", nargs="+", choices=DTYPES, type=str)
    command.add_argument("--sizes", nargs="+", type=arguments.typed(parse_size), metavar="HxW")
    command.add_argument("--models", nargs="+", choices=models)
    _add_inputs(command)


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", type=arguments.device, default=arguments.default_device(), metavar="cpu|cuda"
    )
    command.add_argument("--batch", type=arguments.whole(1), default=1, metavar="N")
    command.add_argument("--output", type=Path, metavar="DIR", help=f"else in {RESULTS_FOLDER}")
