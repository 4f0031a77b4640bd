"""Types of command-line arguments, and what stands where they are left away."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


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


def typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A parser that raises ValueError, as argparse wants it to show the message."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
