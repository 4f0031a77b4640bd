"""The backend that use_backend() forces: `forced.name`, None where it forces none.

The attribute is a ContextVar, and so holds for one thread and one asyncio task. It is an attribute
of a module since torch.compile can read, set and guard on those, in every version; in a ContextVar
it can't set anything, and older ones can't guard on it. The guard looks the attribute up before
each call of the compiled code, in the caller's context.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from types import ModuleType

# of the module's class, below
name: str | None

_name: ContextVar[str | None] = ContextVar("pvt_kernels.forced", default=None)


class _Module(ModuleType):
    @property
    def name(self) -> str | None:
        return _name.get()

    @name.setter
    def name(self, value: str | None) -> None:
        _name.set(value)


sys.modules[__name__].__class__ = _Module
