"""The commands train, eval, predict and make-data."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pvt_kernels import arguments, models, systems

if TYPE_CHECKING:
    from torch import nn

    from pvt_kernels.systems.training.recipe import Recipe
    from pvt_kernels.systems.training.system import System

# what a shell reports of a process that a signal ended
_SIGNALLED = 128


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser(
        "train",
        help="train a system of the paper",
        description="On several GPUs: torchrun --nproc-per-node 8 -m pvt_kernels train ...; the "
        "batch is the recipe's on any number of them.",
    )
    command.set_defaults(run=_train)
    _add_system(command)
    _add_data(command)
    _add_recipe(command)
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="of checkpoints and TensorBoard's logs; else runs/SYSTEM-MODEL",
    )
    command.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a classifier's checkpoint to start the backbone from",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in --output, if there is one",
    )
    command.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute blocks again in backward: less memory, more time",
    )
    command.add_argument("--seed", type=arguments.whole(0), default=0, metavar="N")
    command.add_argument("--save-every", type=arguments.whole(1), default=1000, metavar="STEPS")
    command.add_argument("--log-every", type=arguments.whole(1), default=10, metavar="STEPS")

    command = commands.add_parser("eval", help="evaluate a trained system")
    command.set_defaults(run=_eval)
    _add_system(command)
    _add_data(command)
    _add_checkpoint(command)
    _add_recipe(command)

    command = commands.add_parser("predict", help="draw a system's answer on an image")
    command.set_defaults(run=_predict)
    _add_system(command)
    command.add_argument("image", type=Path, metavar="IMAGE")
    _add_checkpoint(command)
    command.add_argument("--output", type=Path, metavar="FILE", help="else IMAGE-SYSTEM.png")
    _add_device(command)

    command = commands.add_parser(
        "make-data", help="generate a small data set in the layouts of ImageNet, COCO and ADE20K"
    )
    command.set_defaults(run=_make_data)
    command.add_argument("path", type=Path, metavar="PATH")
    command.add_argument("--images", type=arguments.whole(1), default=240, metavar="N")
    command.add_argument("--seed", type=arguments.whole(0), default=0, metavar="N")


def _add_system(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "system", choices=systems.NAMES, metavar="SYSTEM", help=", ".join(systems.NAMES)
    )


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    command.add_argument(
        "--workers",
        type=arguments.whole(0),
        default=_workers(),
        metavar="N",
        help="processes that read data, for each GPU",
    )
    _add_device(command)


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", type=arguments.device, default=arguments.default_device(), metavar="cpu|cuda"
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        choices=models.names(),
        metavar="NAME",
        help=f"the backbone: {', '.join(models.names())}",
    )
    command.add_argument("--recipe", metavar="NAME", help="else the paper's")
    command.add_argument(
        "--set",
        nargs="+",
        type=arguments.typed(_setting),
        default=[],
        metavar="FIELD=VALUE",
        help="replace fields of the recipe",
    )


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="last.pt of a run, or weights of the original code",
    )


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"given {text!r}, accepted FIELD=VALUE")
    return name, value


def _workers() -> int:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(1, (os.cpu_count() or 1) // local))


@contextlib.contextmanager
def _train_extra() -> Iterator[None]:
    """Says how to install what is imported here and missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pvt_kernels"):
            raise
        raise ImportError(
            f"this needs {error.name}, which is not installed: pip install 'pvt_kernels[train]'"
        ) from error


def _train(options: argparse.Namespace, console: Console) -> int:
    with _train_extra():
        from pvt_kernels.systems.training import recipe
        from pvt_kernels.systems.training.distributed import processes
        from pvt_kernels.systems.training.engine import Run, Training

        system = systems.load(options.system)
    chosen = recipe.find(system.recipes, options.recipe, options.model)
    backbone = options.model or chosen.model
    run = Run(
        system=system,
        recipe=chosen,
        settings=dict(options.set),
        backbone=backbone,
        data=options.data,
        output=options.output or Path("runs") / f"{system.name}-{backbone}",
        weights=options.weights,
        resume=options.resume,
        precision=options.precision,
        recompute=options.gradient_checkpointing,
        seed=options.seed,
        workers=options.workers,
        save_every=options.save_every,
        log_every=options.log_every,
    )
    with processes(options.device) as own:
        outcome = Training(run, own).run(console)
        if outcome.signal is not None:
            if own.main:
                console.print(f"Interrupted; --resume goes on from {run.output}.", markup=False)
            return _SIGNALLED + outcome.signal
    return 0


def _eval(options: argparse.Namespace, console: Console) -> None:
    with _train_extra():
        from pvt_kernels.systems.training import checkpoint
        from pvt_kernels.systems.training.distributed import processes
        from pvt_kernels.systems.training.evaluation import Inference, evaluate
        from pvt_kernels.systems.training.progress import metrics_table

        system = systems.load(options.system)
    with processes(options.device) as own:
        content = checkpoint.load(options.checkpoint)
        recipe, backbone = _recipe_of(system, content, options)
        dataset = system.dataset(options.data, recipe, False)
        classes = content.get("classes", list(dataset.classes))
        if classes != list(dataset.classes):
            raise ValueError(
                f"{options.checkpoint} knows the classes {classes}, but {options.data} has "
                f"{list(dataset.classes)}"
            )
        model = _build(system, backbone, classes, recipe, content, options)
        inference = Inference(system, recipe, options.precision, options.workers)
        metrics = evaluate(inference, model, dataset, own)
        if own.main:
            console.print(metrics_table(f"{system.name}, {len(dataset)} images", metrics))


def _predict(options: argparse.Namespace, console: Console) -> None:
    with _train_extra():
        from pvt_kernels.systems.datasets.images import read_image
        from pvt_kernels.systems.training import checkpoint

        system = systems.load(options.system)
    content = checkpoint.load(options.checkpoint)
    if "classes" not in content:
        raise ValueError(f"{options.checkpoint} is no checkpoint of `train`: it names no classes")
    image = read_image(options.image)
    recipe, backbone = _recipe_of(system, content, options)
    model = _build(system, backbone, content["classes"], recipe, content, options)
    picture = system.picture(model, image, content["classes"], recipe)
    default = options.image.with_name(f"{options.image.stem}-{system.name}.png")
    path = options.output or default
    picture.save(path)
    console.print(f"Written: {path}", markup=False)


def _make_data(options: argparse.Namespace, console: Console) -> None:
    with _train_extra():
        from pvt_kernels.systems.datasets import shapes
    folders = shapes.make_data(options.path, options.images, options.seed)
    console.print("Written:", *map(str, folders.values()), sep="\n  ", markup=False)


def _recipe_of(
    system: System, content: dict[str, Any], options: argparse.Namespace
) -> tuple[Recipe, str]:
    """The recipe and the backbone of a checkpoint: a run's own, else what the options say."""
    from pvt_kernels.systems.training import checkpoint, recipe

    name, model = getattr(options, "recipe", None), getattr(options, "model", None)
    settings = dict(getattr(options, "set", ()))
    if checkpoint.is_run(content):
        for given, known, what in (
            (system.name, content["system"], "system"),
            (model, content["backbone"], "model"),
        ):
            if given not in (None, known):
                raise ValueError(f"{options.checkpoint} is of {what} {known}, given {given}")
        name, model = name or content["recipe"], content["backbone"]
        settings = {**content["settings"], **settings}
    chosen = recipe.find(system.recipes, name, model)
    return recipe.override(chosen, settings), model or chosen.model


def _build(
    system: System,
    backbone: str,
    classes: list[str],
    recipe: Recipe,
    content: dict[str, Any],
    options: argparse.Namespace,
) -> nn.Module:
    """The system's model with a checkpoint's weights, in evaluation mode on the device."""
    from pvt_kernels.models.checkpoint import unwrap

    model = system.build(backbone, classes, recipe)
    try:
        model.load_state_dict(unwrap(content))
    except RuntimeError as error:
        raise ValueError(f"{options.checkpoint} does not fit {backbone}: {error}") from error
    return model.to(options.device).eval()
