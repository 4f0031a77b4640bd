"""What patch() did, module by module."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from pvt_kernels.integrations.classes import restore

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 160


@dataclass(frozen=True)
class Row:
    """One attention module.

    Attributes:
        module: its name in the model, "" for the model itself.
        family: the adapter's, or "pvt_kernels" for this package's own layer.
        swapped: whether this package computes it from now on, or would after a dry run.
        reason: why not; of a swapped module, which calls still run its own forward.
        backend: what computes it on the device where its parameters are, "" if it is not swapped.
    """

    module: str
    family: str
    swapped: bool
    reason: str
    backend: str


@dataclass
class Report:
    """A table of the model's attention modules; `with patch(model) as report:` ends with unpatch.

    Attributes:
        rows: one for each attention module, in the model's order.
        dry_run: whether nothing was changed.
        patched: the modules that were.
    """

    rows: list[Row]
    dry_run: bool
    patched: list[nn.Module] = field(default_factory=list, repr=False)

    @property
    def swapped(self) -> list[str]:
        """Names of the modules that were swapped, or would be after a dry run."""
        return [row.module for row in self.rows if row.swapped]

    @property
    def skipped(self) -> dict[str, str]:
        """Names of the modules that were left alone, and why."""
        return {row.module: row.reason for row in self.rows if not row.swapped}

    def __rich__(self) -> Table:
        # only now: most programs patch and never print
        from rich.table import Table
        from rich.text import Text

        table = Table("module", "family", "outcome", "backend", "reason")
        for row in self.rows:
            verb = "skipped" if not row.swapped else "would swap" if self.dry_run else "swapped"
            cells = (row.module or "(the model)", row.family, verb, row.backend, row.reason)
            table.add_row(*map(Text, cells))
        return table

    def __str__(self) -> str:
        if not self.rows:
            return "no spatial-reduction attention found"
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=WIDTH).print(self)
        return text.getvalue().rstrip()

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *exception: object) -> None:
        restore(self.patched)
