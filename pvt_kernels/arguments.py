"""Types of command-line arguments, and what stands where they are left away."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument in one line; --help has the usage."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        # what starts like a negative number is a value, which its option then names and rejects
        self._negative_number_matcher = re.compile(r"-\d")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def default_device() -> str:
    """cuda if there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(text: str) -> str:
    """cpu, or cuda where there is a GPU."""
    accepted = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if text not in accepted:
        hint = " (PyTorch sees no GPU)" if text == "cuda" else ""
        raise argparse.ArgumentTypeError(f"given {text!r}, accepted {' or '.join(accepted)}{hint}")
    return text


def whole(least: int) -> Callable[[str], int]:
    """Whole numbers of at least `least`, which is not negative."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"given {text!r}, accepted a whole number of at least {least}"
            )
        return int(text)

    return convert


def file(text: str) -> Path:
    """A file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"given {text!r}, accepted a file that exists")
    return path


def folder(text: str) -> Path:
    """A folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"given {text!r}, accepted a folder that exists")
    return path


def new_file(text: str) -> Path:
    """A file to write, in a folder that is there."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"given {text!r}, accepted the name of a file in a folder that exists"
        )
    return path


def new_folder(text: str) -> Path:
    """A folder, which may have to be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"given {text!r}, which is a file, accepted a folder")
    return path


def typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A parser that raises ValueError, as argparse wants it to show the message."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
