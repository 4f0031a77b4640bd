"""Errors that name the argument which is at fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def naming(argument: str) -> Iterator[None]:
    """Put an argument's name in front of what ValueError and FileNotFoundError say."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{argument}: {error}") from error
