"""The command line's options of the systems, their help, and what is checked of paths."""

from __future__ import annotations

import argparse
import contextlib
import os
import reprlib
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pvt_kernels import arguments, models, systems
from pvt_kernels.systems.training.recipe import Recipe, fields, find

PUBLISHED = (
    "the original code's are at https://github.com/whai362/PVT/releases/tag/v2, such as "
    "pvt_small.pth and, for pvt_v2_b2_linear, pvt_v2_b2_li.pth"
)


# writes values as --set takes them, but for tuples, of which the beginning will do
_SHORT = reprlib.Repr()
_SHORT.maxtuple = 3


class SystemHelp(argparse.Action):
    """Prints help; where it comes after a system, also the system's recipes and their fields."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(
            option_strings,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            nargs=0,
            help="show this; after SYSTEM also its recipes and their fields",
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        _values: Any,
        _option: str | None = None,
    ) -> None:
        """Print and exit."""
        recipes = ""
        if getattr(namespace, "system", None):
            try:
                with train_extra():
                    system = systems.load(namespace.system)
                recipes = recipes_help(system.recipes, namespace.recipe, namespace.model)
            except (ImportError, ValueError) as error:
                parser.error(str(error))
        print(parser.format_help() + recipes, end="")
        parser.exit()


def recipes_help(recipes: tuple[Recipe, ...], name: str | None, model: str | None) -> str:
    """The recipes of a system, and what `--set` replaces in one of them.

    Raises:
        ValueError: there is no recipe called `name`.
    """
    chosen = find(recipes, name, model)
    lines = ["", "recipes:"]
    for recipe in recipes:
        default = f" (default of {', '.join(recipe.models)})" if recipe.models else ""
        lines += _row(recipe.name, f"{recipe.summary}{default}")
    lines += ["", f"fields that --set replaces, their values in {chosen.name}, and what they take:"]
    for name, field in fields(type(chosen)).items():
        value = getattr(chosen, name)
        if not isinstance(value, str):
            value = _SHORT.repr(value).strip("()").rstrip(",")
        lines += _row(name, f"{value:22} {field.words}", indent=23)
    return "\n".join([*lines, ""])


def _row(name: str, text: str, indent: int = 0) -> list[str]:
    """A name and text beside it, wrapped as argparse wraps help; `indent` where it goes on."""
    return textwrap.wrap(
        text,
        shutil.get_terminal_size().columns - 2,
        initial_indent=f"  {name:16} ",
        subsequent_indent=" " * (19 + indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def add_system(command: argparse.ArgumentParser) -> None:
    """Add the argument SYSTEM."""
    command.add_argument(
        "system", choices=systems.NAMES, metavar="SYSTEM", help=", ".join(systems.NAMES)
    )


def add_data(command: argparse.ArgumentParser) -> None:
    """Add the options on data, and on what computes."""
    layouts = {layout: [] for layout in systems.LAYOUTS.values()}
    for name, layout in systems.LAYOUTS.items():
        layouts[layout].append(name)
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="; ".join(
            f"of {', '.join(names)}: {layout.holds}, or {layout.name} of make-data"
            for layout, names in layouts.items()
        ),
    )
    command.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="fp32, bf16, or fp16, which is trained with loss scaling (default: %(default)s)",
    )
    command.add_argument(
        "--workers",
        type=arguments.whole(0),
        default=_workers(),
        metavar="N",
        help="processes that read data, for each GPU (default: %(default)s, one a core, at most 8)",
    )
    add_device(command)


def add_device(command: argparse.ArgumentParser) -> None:
    """Add the option --device."""
    command.add_argument(
        "--device",
        type=arguments.device,
        default=arguments.default_device(),
        metavar="cpu|cuda",
        help="what computes (default: cuda where there is a GPU, here %(default)s)",
    )


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Add the options on the recipe."""
    command.add_argument(
        "--model",
        choices=models.names(),
        metavar="NAME",
        help=f"the backbone (default: the recipe's): {', '.join(models.names())}",
    )
    command.add_argument(
        "--recipe",
        metavar="NAME",
        help="one of the system's (default: the paper's for the backbone); shapes is for the data "
        "of make-data",
    )
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=arguments.typed(_setting),
        default=[],
        metavar="FIELD=VALUE",
        help="replace fields of the recipe (default: none), which SYSTEM --help lists; of epochs "
        "and iterations the last one given holds",
    )


def add_checkpoint(command: argparse.ArgumentParser, weights: bool) -> None:
    """Add the option --checkpoint; `weights` where a classifier's weights alone will do."""
    command.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="last.pt of a run" + (f", or a classifier's weights: {PUBLISHED}" if weights else ""),
    )


@contextlib.contextmanager
def train_extra() -> Iterator[None]:
    """Say how to install what is imported here and missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pvt_kernels"):
            raise
        raise ImportError(
            f"this needs {error.name}, which is not installed: pip install 'pvt_kernels[train]'"
        ) from error


def require_file(option: str, path: Path, accepted: str) -> None:
    """See that an option's file is there, before any work.

    Raises:
        FileNotFoundError: it is not, or is a folder.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{option}: given {path}, which {what}; accepted {accepted}")


def require_data(system: str, path: Path) -> None:
    """See that the folder of a system's data is there, before any work.

    Raises:
        FileNotFoundError: it is not, or holds generated data one folder further down.
    """
    layout = systems.LAYOUTS[system]
    if (path / layout.name).is_dir():
        raise FileNotFoundError(f"--data: given {path}, accepted {path / layout.name}")
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"--data: given {path}, which {what}; accepted a folder with {layout.holds}"
        )


def require_new_folder(option: str, path: Path) -> None:
    """See that a folder can be made, as far as files may be in its way.

    Raises:
        ValueError: one is.
    """
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{option}: given {path}, but {folder} is a file; accepted a folder")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"given {text!r}, accepted FIELD=VALUE")
    return name, value


def _workers() -> int:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(1, (os.cpu_count() or 1) // local))
