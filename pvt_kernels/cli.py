"""The command line: python -m pvt_kernels COMMAND."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

import pvt_kernels.benchmarking.cli
import pvt_kernels.systems.cli
from pvt_kernels.benchmarking.report import wide_console


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = wide_console()
    try:
        # 0 is what a command that returns nothing means
        return options.run(options, console) or 0
    except (ImportError, OSError, ValueError, ArithmeticError) as error:
        # no line breaks of its own: they would cut paths in two
        Console(stderr=True, soft_wrap=True).print(
            f"error: {error}", style="red", markup=False, highlight=False
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pvt_kernels", description="Benchmarks, and the systems of the PVT paper."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pvt_kernels.benchmarking.cli.add_commands(commands)
    pvt_kernels.systems.cli.add_commands(commands)
    return parser
