"""The commands info, bench, bench-patch, study, plot, publish and roofline."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console

from pvt_kernels import arguments, models
from pvt_kernels.benchmarking import environment, info, study
from pvt_kernels.benchmarking.cases import (
    BENCH_KINDS,
    DTYPES,
    OWN_SUBJECTS,
    QUICK_SIZE,
    Suite,
    patched_suite,
    suite,
)
from pvt_kernels.benchmarking.live_models import LIVE_MODELS
from pvt_kernels.benchmarking.model import GPU_MODELS, print_model
from pvt_kernels.benchmarking.plots import write_plots
from pvt_kernels.benchmarking.progress import Forecast, Run, expected_seconds, run_cases
from pvt_kernels.benchmarking.publish import publish
from pvt_kernels.benchmarking.report import markdown, print_tables
from pvt_kernels.benchmarking.results import Results
from pvt_kernels.benchmarking.runner import run_case
from pvt_kernels.benchmarking.shapes import STAGES, parse_size
from pvt_kernels.benchmarking.timing import rates

RUNS_FOLDER = Path("benchmarks/runs")
PATCHED_SIZES = (
    "1024x1024 of the SegFormers, 800x1216 of the others, and 224x224, 384x384 and 512x512 of all "
    "but this package's own"
)
# linear SRA pools to 7 x 7: the peers compute another layer
MODELS = tuple(name for name in models.names() if not name.endswith("linear"))


def _bench(options: argparse.Namespace, console: Console) -> None:
    chosen = suite(
        options.quick,
        options.device,
        dtypes=options.dtype,
        sizes=options.sizes,
        stages=options.stages,
        models=options.models,
        kinds=options.only,
        batch=options.batch,
    )
    if not chosen.cases:
        raise ValueError(f"--only: given {' '.join(options.only)}, which the quick form leaves out")
    _run_and_write(chosen, _of(chosen), ("results.json", "table.md"), options, console)


def _bench_patch(options: argparse.Namespace, console: Console) -> None:
    chosen = patched_suite(
        options.quick,
        options.device,
        dtypes=options.dtype or ["fp32"],
        sizes=options.sizes,
        models=options.models,
        batch=options.batch,
    )
    if not chosen.cases:
        raise ValueError(f"sizes: no such model is measured at these; accepted {PATCHED_SIZES}")
    _run_and_write(chosen, _of(chosen), ("patched.json", "patched.md"), options, console)


def _study(options: argparse.Namespace, console: Console) -> None:
    chosen = study.suite(options.sizes, options.dtype, options.batch, options.device)
    _run_and_write(chosen, study.run_case, ("study.json", "study.md"), options, console)


def _of(chosen: Suite) -> Run:
    return lambda case, _, told: run_case(case, chosen, told)


def _run_and_write(
    chosen: Suite,
    run: Run,
    names: tuple[str, str],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Measure, print, and write the samples and tables under `names`, and the plots.

    Raises:
        KeyboardInterrupt: with what was written before.
    """
    device, cases = torch.device(options.device), chosen.cases
    folder = options.output or RUNS_FOLDER / environment.slug(environment.device_name(device))
    folder.mkdir(parents=True, exist_ok=True)
    samples, table = (folder / name for name in names)
    facts = environment.collect(device, options.command, len(cases))
    results = Results(facts, [])
    try:
        console.print(f"Measuring {len(cases)} cases on {facts['device']}.", markup=False)
        facts |= rates(dict.fromkeys(case.dtype for case in cases), device)
        matmul = facts["matmul_gflops"]
        forecast = Forecast([expected_seconds(c, chosen, matmul[c.dtype]) for c in cases])
        run_cases(cases, run, forecast, results, console, lambda: results.save(samples))
    except KeyboardInterrupt:
        if not results.measurements:
            raise KeyboardInterrupt("no case had ended, nothing was written") from None
        table.write_text(markdown(results), encoding="utf-8")
        raise KeyboardInterrupt(
            f"{results.ended} of {len(cases)} cases are in {samples} and {table}"
        ) from None
    print_tables(results, console)
    table.write_text(markdown(results), encoding="utf-8")
    written = [samples, table, *write_plots(results, folder)]
    console.print("Written:", *map(str, written), sep="\n  ", markup=False)


def _roofline(options: argparse.Namespace, console: Console) -> None:
    gpu = GPU_MODELS[options.gpu]
    for dtype in options.dtype:
        for size in options.sizes:
            print_model(console, gpu, DTYPES[dtype], size, options.stages, options.batch)


def _plot(options: argparse.Namespace, console: Console) -> None:
    results = Results.load(options.results)
    for path in write_plots(results, options.results.parent):
        console.print(str(path), markup=False)


def _publish(options: argparse.Namespace, console: Console) -> None:
    written = publish(options.run_folder, options.readme)
    console.print("Written:", *map(str, written), sep="\n  ", markup=False)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser(
        "info",
        help="versions, devices, backends and models",
        description="Prints what was compiled, each backend and why those that can't run can't, "
        "and the models with their parameters and operations.",
    )
    command.set_defaults(run=lambda _, console: info.print_info(console))

    command = commands.add_parser(
        "bench",
        help="time and memory of attention layers and backbones",
        description="Compares naive attention, published, SDPA and compiled SRA, and this "
        "package's backends, and likewise the feed-forward networks and whole backbones. Takes "
        "half an hour on two cores; --quick two minutes.",
    )
    command.set_defaults(run=_bench)
    _add_common(
        command,
        quick="800x1216, fp32, pvt_tiny, fewer rounds",
        dtypes="fp32 and bf16, on a GPU fp16 too",
        sizes="800x1216 224x224",
        models=MODELS,
        default_models="pvt_tiny",
    )
    _add_stages(command)
    command.add_argument(
        "--only",
        nargs="+",
        choices=BENCH_KINDS,
        metavar="WHAT",
        help=f"of {_listed(BENCH_KINDS)}; default all",
    )
    command.add_argument("--model", type=_moved_to_roofline, help=argparse.SUPPRESS)

    command = commands.add_parser(
        "bench-patch",
        help="whole models: other libraries' before and after patch(), and this package's",
        description="Compares timm's and transformers' models as they are, also compiled where the "
        "images are large, with the same ones patched, and this package's PVT and PVTv2 with those "
        "of PyTorch's layers: forward and training step. Takes about two hours on two cores; "
        "--quick one minute.",
    )
    command.set_defaults(run=_bench_patch)
    _add_common(
        command,
        quick="segformer_b0 at 512x512",
        dtypes="fp32",
        sizes=f"{PATCHED_SIZES}, which are all that are accepted",
        models=(*LIVE_MODELS, *(name for name, _ in OWN_SUBJECTS)),
        default_models="all",
    )

    command = commands.add_parser(
        "study",
        help="operations, time and memory of backbones by resolution",
        description="Compares PVT-Small with and without its pyramid and its spatial reduction, a "
        "ViT and a ResNet-50. What would take too long is counted alone. Takes about eight "
        "minutes on two cores.",
    )
    command.set_defaults(run=_study)
    command.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help=f"{_listed(DTYPES)}; default fp32"
    )
    command.add_argument(
        "--sizes",
        nargs="+",
        type=arguments.typed(parse_size),
        default=study.SIZES,
        metavar="HxW",
        help="of the images; default 224x224 to 1344x1344 in steps of 224",
    )
    _add_inputs(command)

    command = commands.add_parser(
        "plot",
        help="draw the plots of a run again",
        description="Writes the plots of a run's samples beside them.",
    )
    command.set_defaults(run=_plot)
    command.add_argument(
        "results",
        type=arguments.file,
        metavar="RESULTS.json",
        help="results.json, patched.json or study.json of a run",
    )

    command = commands.add_parser(
        "publish",
        help="make a complete run the one that the README shows",
        description="Copies the samples of a run whose rows have enough rounds below "
        "benchmarks/results, under the machine's name, and writes tables, plots and the README's "
        "section of results anew. What the run lacks stays as it was published.",
    )
    command.set_defaults(run=_publish)
    command.add_argument(
        "run_folder", type=arguments.folder, metavar="RUN", help=f"a folder in {RUNS_FOLDER}"
    )
    command.add_argument(
        "--readme",
        type=arguments.file,
        default=Path("README.md"),
        metavar="FILE",
        help="that has the section; default README.md",
    )

    command = commands.add_parser(
        "roofline",
        help="what the kernels would take at least on a GPU",
        description="Prints operations, bytes and least time of every kernel of PVT's layers, and "
        "their sum for each stage. Measures nothing, and needs no GPU.",
    )
    command.set_defaults(run=_roofline)
    command.add_argument(
        "--gpu", choices=GPU_MODELS, required=True, help=f"one of {_listed(GPU_MODELS)}"
    )
    command.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["fp16"], help="default fp16"
    )
    command.add_argument(
        "--sizes",
        nargs="+",
        type=arguments.typed(parse_size),
        default=[QUICK_SIZE],
        metavar="HxW",
        help="of the images; default 800x1216",
    )
    _add_stages(command)
    _add_batch(command)


def _add_common(
    command: argparse.ArgumentParser,
    quick: str,
    dtypes: str,
    sizes: str,
    models: tuple[str, ...],
    default_models: str,
) -> None:
    command.add_argument("--quick", action="store_true", help=f"only {quick}")
    command.add_argument(
        "--dtype", nargs="+", choices=DTYPES, help=f"{_listed(DTYPES)}; default {dtypes}"
    )
    command.add_argument(
        "--sizes",
        nargs="+",
        type=arguments.typed(parse_size),
        metavar="HxW",
        help=f"of the images; default {sizes}",
    )
    command.add_argument(
        "--models",
        nargs="+",
        choices=models,
        metavar="NAME",
        help=f"of {_listed(models)}; default {default_models}",
    )
    _add_inputs(command)


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        type=arguments.device,
        default=arguments.default_device(),
        metavar="cpu|cuda",
        help="default cuda if there is a GPU, else cpu",
    )
    _add_batch(command)
    command.add_argument(
        "--output",
        type=arguments.new_folder,
        metavar="DIR",
        help=f"for the results; default {RUNS_FOLDER}/MACHINE",
    )


def _add_stages(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stages",
        nargs="+",
        type=int,
        choices=STAGES,
        default=list(STAGES),
        metavar="STAGE",
        help="of PVT, 1 to 4; default all",
    )


def _add_batch(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--batch", type=arguments.whole(1), default=1, metavar="N", help="images; default 1"
    )


def _moved_to_roofline(text: str) -> str:
    raise argparse.ArgumentTypeError(
        f"given {text!r}; what kernels take on a GPU is printed by another command: "
        f"python -m pvt_kernels roofline --gpu {text}"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
