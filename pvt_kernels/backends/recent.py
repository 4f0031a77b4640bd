"""What was used lately, of what is made once and kept: bounded, for training at many sizes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values of the last keys: at least `least` of them, at most twice as many.

    Two dicts, of which the newer one takes what is used; once it is full, it becomes the older one,
    and what nobody used in the meantime is dropped. Threads may share it: each step is one
    operation on a dict, and at worst two threads make the same value. What is dropped lives on
    where it is in use.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._newer: dict[Hashable, Value] = {}
        self._older: dict[Hashable, Value] = {}

    def get(self, key: Hashable) -> Value | None:
        """The value, or None where there is none."""
        value = self._newer.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value, which is not None."""
        newer = self._newer
        if len(newer) >= self._least:
            self._older, self._newer = newer, {key: value}
        else:
            newer[key] = value

    def clear(self) -> None:
        """Keep nothing."""
        self._newer, self._older = {}, {}

    def __len__(self) -> int:
        return len(self._newer.keys() | self._older.keys())
