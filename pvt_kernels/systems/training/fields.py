"""The kinds of values that a recipe's fields take: types with what holds of every value."""

from __future__ import annotations

import ast
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Kind:
    """What a field takes, in words, and whether a value of the annotated type is such."""

    words: str
    holds: Callable[[Any], bool]


def _above_zero(values: tuple, *accepted: type) -> bool:
    return all(type(value) in accepted and 0 < value < math.inf for value in values)


Count = Annotated[int, Kind("a whole number of at least 1", lambda n: n >= 1)]
# the smallest image that every backbone takes
Side = Annotated[int, Kind("a whole number of at least 32", lambda n: n >= 32)]
Positive = Annotated[float, Kind("a number above 0", lambda x: 0 < x < math.inf)]
NotNegative = Annotated[float, Kind("a number of at least 0", lambda x: 0 <= x < math.inf)]
Probability = Annotated[float, Kind("a number from 0 to 1", lambda x: 0 <= x <= 1)]
Dropout = Annotated[float, Kind("a number of at least 0 and below 1", lambda x: 0 <= x < 1)]
Part = Annotated[float, Kind("a number above 0, at most 1", lambda x: 0 < x <= 1)]
Switch = Annotated[bool, Kind("True or False", lambda _: True)]
Lengths = Annotated[
    tuple[int, ...],
    Kind("whole numbers above 0, such as 640,800", lambda v: bool(v) and _above_zero(v, int)),
]
Range = Annotated[
    tuple[float, float],
    Kind(
        "two numbers above 0 in ascending order, such as 0.5,2.0",
        lambda v: len(v) == 2 and _above_zero(v, int, float) and v[0] <= v[1],
    ),
]


class Field:
    """What a field takes, from its hint: an annotated type, or that or None.

    Attributes:
        kind, type: of its values.
        optional: whether None is one.
    """

    def __init__(self, hint: Any) -> None:
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        options = typing.get_args(hint) if union else (hint,)
        self.optional = types.NoneType in options
        annotated = next(option for option in options if option is not types.NoneType)
        self.kind: Kind = annotated.__metadata__[0]
        base = annotated.__origin__
        self.type: type = typing.get_origin(base) or base

    @property
    def words(self) -> str:
        """What it takes, for people."""
        return ("None or " if self.optional else "") + self.kind.words

    @staticmethod
    def annotated(hint: Any) -> bool:
        """Whether a hint is one of a Field."""
        return any(hasattr(part, "__metadata__") for part in (hint, *typing.get_args(hint)))

    def takes(self, value: Any) -> bool:
        """Whether it takes a value."""
        if value is None:
            return self.optional
        accepted = (int, float) if self.type is float else (self.type,)
        return type(value) in accepted and self.kind.holds(value)

    def parse(self, text: str) -> Any:
        """A value from how it is written in Python.

        A string stands without quotation marks, and a tuple of one without a comma.
        """
        if self.type is str and text != "None":
            return text
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if value is None or type(value) is self.type:
            return value
        if self.type is tuple:
            return (value,)
        return float(value) if self.type is float and type(value) is int else value
