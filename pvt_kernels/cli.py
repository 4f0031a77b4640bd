"""The command line: python -m pvt_kernels COMMAND."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence

from rich.console import Console

import pvt_kernels.benchmarking.cli
import pvt_kernels.checking.cli
import pvt_kernels.systems.cli
from pvt_kernels.arguments import Parser
from pvt_kernels.benchmarking.table import wide_console

PROGRAM = "python -m pvt_kernels"
# as argparse ends, and what a shell reports of a process that Ctrl-C ended
BAD_ARGUMENTS, INTERRUPTED = 2, 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    options.command = f"{PROGRAM} {shlex.join(arguments)}"
    try:
        # 0 is what a command that returns nothing means
        return options.run(options, wide_console()) or 0
    except KeyboardInterrupt as interruption:
        _print_line(f"Interrupted: {interruption}" if interruption.args else "Interrupted.")
        return INTERRUPTED
    except (ValueError, FileNotFoundError) as error:
        _print_line(f"error: {error}")
        return BAD_ARGUMENTS
    except (ImportError, OSError, ArithmeticError) as error:
        _print_line(f"error: {error}")
        return 1


def _print_line(text: str) -> None:
    # no line breaks of its own: they would cut paths in two
    Console(stderr=True, soft_wrap=True).print(text, style="red", markup=False, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM, description="A check, benchmarks, and the systems of the PVT paper."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pvt_kernels.checking.cli.add_commands(commands)
    pvt_kernels.benchmarking.cli.add_commands(commands)
    pvt_kernels.systems.cli.add_commands(commands)
    return parser
