"""The commands train, eval, predict and make-data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pvt_kernels import arguments, systems
from pvt_kernels.systems import options as shared
from pvt_kernels.systems.training.errors import naming

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
        add_help=False,
        help="train a system of the paper",
        description="Train a system of the paper. On several GPUs: torchrun --nproc-per-node 8 -m "
        "pvt_kernels train ...; the batch is the recipe's on any number of them.",
    )
    command.set_defaults(run=_train)
    command.add_argument("-h", "--help", action=shared.SystemHelp)
    shared.add_system(command)
    shared.add_data(command)
    shared.add_recipe(command)
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="of checkpoints and TensorBoard's logs (default: runs/SYSTEM-MODEL)",
    )
    command.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a classifier to start the backbone from (default: none): last.pt of `train "
        f"classification`, or published weights; {shared.PUBLISHED}",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in --output, if there is one (default: off)",
    )
    command.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute blocks again in backward: less memory, more time (default: off)",
    )
    command.add_argument(
        "--seed",
        type=arguments.whole(0),
        default=0,
        metavar="N",
        help="of everything random (default: %(default)s)",
    )
    command.add_argument(
        "--save-every",
        type=arguments.whole(1),
        default=1000,
        metavar="STEPS",
        help="steps between checkpoints (default: %(default)s); evaluations and the end save too",
    )
    command.add_argument(
        "--log-every",
        type=arguments.whole(1),
        default=10,
        metavar="STEPS",
        help="steps between figures in the log (default: %(default)s)",
    )

    command = commands.add_parser(
        "eval",
        add_help=False,
        help="evaluate a trained system",
        description="Evaluate a trained system on the images to test.",
    )
    command.set_defaults(run=_eval)
    command.add_argument("-h", "--help", action=shared.SystemHelp)
    shared.add_system(command)
    shared.add_data(command)
    shared.add_checkpoint(command, weights=True)
    shared.add_recipe(command)

    command = commands.add_parser(
        "predict",
        help="print a system's answer on an image, and draw it",
        description="Print a system's answer on an image, and draw it.",
    )
    command.set_defaults(run=_predict)
    shared.add_system(command)
    command.add_argument(
        "image", type=Path, metavar="IMAGE", help="a file of any format that Pillow reads"
    )
    shared.add_checkpoint(command, weights=False)
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the picture (default: IMAGE-SYSTEM.png in this folder)",
    )
    shared.add_device(command)

    layouts = ", ".join(dict.fromkeys(layout.name for layout in systems.LAYOUTS.values()))
    command = commands.add_parser(
        "make-data",
        help="generate a small data set in the layouts of ImageNet, COCO and ADE20K",
        description="Generate coloured shapes in the layouts of ImageNet, COCO and ADE20K, for "
        "the systems' recipe shapes.",
    )
    command.set_defaults(run=_make_data)
    command.add_argument(
        "path", type=Path, metavar="PATH", help=f"a new folder, which then holds {layouts}"
    )
    command.add_argument(
        "--images",
        type=arguments.whole(1),
        default=240,
        metavar="N",
        help="to train, in each layout, 24 or more; a quarter more to test (default: %(default)s)",
    )
    command.add_argument(
        "--seed",
        type=arguments.whole(0),
        default=0,
        metavar="N",
        help="of everything random (default: %(default)s)",
    )


def _train(options: argparse.Namespace, console: Console) -> int:
    shared.require_data(options.system, options.data)
    if options.weights:
        shared.require_file("--weights", options.weights, "a classifier's checkpoint")
    if options.output:
        shared.require_new_folder("--output", options.output)
    with shared.train_extra():
        from pvt_kernels.systems.training import recipe
        from pvt_kernels.systems.training.distributed import processes
        from pvt_kernels.systems.training.engine import Run, Training

        system = systems.load(options.system)
    chosen = recipe.find(system.recipes, options.recipe, options.model)
    settings = dict(options.set)
    with naming("--set"):
        recipe.override(chosen, settings)
    backbone = options.model or chosen.model
    run = Run(
        system=system,
        recipe=chosen,
        settings=settings,
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
    shared.require_data(options.system, options.data)
    shared.require_file("--checkpoint", options.checkpoint, "last.pt of a run, or weights")
    with shared.train_extra():
        from pvt_kernels.models import checkpoint
        from pvt_kernels.systems.training.distributed import processes
        from pvt_kernels.systems.training.evaluation import Inference, evaluate
        from pvt_kernels.systems.training.progress import metrics_table

        system = systems.load(options.system)
    with processes(options.device) as own:
        with naming("--checkpoint"):
            content = checkpoint.load(options.checkpoint)
        recipe, backbone = _recipe_of(system, content, options)
        dataset = system.dataset(options.data, recipe, False)
        classes = content.get("classes", list(dataset.classes))
        _check_classes(options, classes, dataset.classes)
        said = console if own.main else None
        model = _build(system, backbone, classes, recipe, content, options, said)
        inference = Inference(system, recipe, options.precision, options.workers)
        metrics = evaluate(inference, model, dataset, own)
        if own.main:
            console.print(metrics_table(f"{system.name}, {len(dataset)} images", metrics))


def _check_classes(options: argparse.Namespace, known: Sequence[str], given: Sequence[str]) -> None:
    from pvt_kernels.models.checkpoint import listed

    if list(known) != list(given):
        only = [
            listed(c for c in own if c not in other)
            for own, other in ((known, given), (given, known))
        ]
        raise ValueError(
            f"--checkpoint: {options.checkpoint} is of {len(known)} classes, but {options.data} "
            f"has {len(given)}: the former alone has {only[0] or 'none'}, the latter "
            f"{only[1] or 'none'}; accepted the same in the same order"
        )


def _predict(options: argparse.Namespace, console: Console) -> None:
    shared.require_file("IMAGE", options.image, "an image")
    shared.require_file("--checkpoint", options.checkpoint, "last.pt of a run")
    with shared.train_extra():
        from PIL import Image

        from pvt_kernels.models import checkpoint
        from pvt_kernels.systems.datasets.images import read_image

        system = systems.load(options.system)
    path = options.output or Path(f"{options.image.stem}-{system.name}.png")
    if path.suffix.lower() not in Image.registered_extensions() or not path.parent.is_dir():
        raise ValueError(
            f"--output: given {path}, accepted a file in a folder that is there, with an image's "
            "suffix such as .png"
        )
    with naming("IMAGE"):
        image = read_image(options.image)
    with naming("--checkpoint"):
        content = checkpoint.load(options.checkpoint)
        if "classes" not in content:
            raise ValueError(
                f"{options.checkpoint} is no checkpoint of `train`: it names no classes"
            )
    recipe, backbone = _recipe_of(system, content, options)
    model = _build(system, backbone, content["classes"], recipe, content, options, console)
    answer = system.answer(model, image, content["classes"], recipe)
    for line in answer.lines:
        console.print(line, markup=False, highlight=False)
    answer.picture.save(path)
    console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


def _make_data(options: argparse.Namespace, console: Console) -> None:
    with shared.train_extra():
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
            (system.name, content["system"], "SYSTEM"),
            (model, content["backbone"], "--model"),
        ):
            if given not in (None, known):
                raise ValueError(
                    f"{what}: given {given}, but {options.checkpoint} is of {known}; accepted "
                    f"{known}"
                )
        name, model = name or content["recipe"], content["backbone"]
        settings = {**content["settings"], **settings}
    chosen = recipe.find(system.recipes, name, model)
    with naming("--set"):
        return recipe.override(chosen, settings), model or chosen.model


def _build(
    system: System,
    backbone: str,
    classes: list[str],
    recipe: Recipe,
    content: dict[str, Any],
    options: argparse.Namespace,
    console: Console | None,
) -> nn.Module:
    """The system's model with a checkpoint's weights, in evaluation mode on the device."""
    from pvt_kernels.models.checkpoint import load_weights, unwrap

    model = system.build(backbone, classes, recipe)
    name = f"{system.name} on {backbone} with {len(classes)} classes"
    with naming("--checkpoint"):
        loaded = load_weights(model, unwrap(content), name, options.checkpoint)
    if loaded and console:
        console.print(f"{options.checkpoint}: {loaded}", markup=False, highlight=False)
    return model.to(options.device).eval()
