"""Tables of text that fit a terminal, and the same ones in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

WIDTH = 160
# between two columns
GAP = 2


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its heading.
        number: whether it is set to the right.
        drop: columns with the highest go first where a terminal is too narrow for all; 0 stays.
    """

    name: str
    number: bool = True
    drop: int = 0


@dataclass
class Table:
    """Text in rows, and notes below it.

    A row whose first cell is empty goes on with the subject of the row before.
    """

    title: str
    columns: Sequence[Column]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)

    def without_empty_columns(self) -> Table:
        """Without the columns in which no row has anything."""
        kept = [i for i in range(len(self.columns)) if any(row[i] for row in self.rows)]
        return self._of(kept)

    def fitting(self, width: int) -> Table:
        """Without the columns that can best be spared, so that no cell has to wrap."""
        kept = list(range(len(self.columns)))
        widths = [
            max(len(column.name), *(len(row[i]) for row in self.rows), 0)
            for i, column in enumerate(self.columns)
        ]
        while sum(widths[i] + GAP for i in kept) - GAP > width:
            spared = max(kept, key=lambda i: self.columns[i].drop)
            if self.columns[spared].drop == 0:
                break
            kept.remove(spared)
        return self._of(kept)

    def _of(self, kept: list[int]) -> Table:
        columns = [self.columns[i] for i in kept]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        return Table(self.title, columns, rows, self.notes)


class Notes:
    """What does not fit a cell: cells get a number, and the reason is said once below."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        """The number of a reason: `(1)`."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"({self.reasons.index(reason) + 1})"

    def __iter__(self) -> Iterator[str]:
        return (f"({i}) {reason}" for i, reason in enumerate(self.reasons, start=1))


def wide_console() -> Console:
    """Standard output; where that is no terminal, as wide as the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_table(table: Table, console: Console) -> None:
    """For the terminal: the columns that fit its width, and the notes below."""
    shown = table.fitting(console.width)
    grid = RichTable(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0)
    )
    for column in shown.columns:
        justify = "right" if column.number else "left"
        grid.add_column(Text(column.name), justify=justify, no_wrap=True, overflow="fold")
    for index, row in enumerate(shown.rows):
        if row[0] and index and not all(r[0] for r in shown.rows):
            grid.add_section()
        grid.add_row(*map(Text, row))
    console.print(Text(shown.title, style="bold"))
    console.print(grid)
    for note in shown.notes:
        console.print(Text(note))
    console.print()


def markdown_table(table: Table) -> str:
    """A heading, the whole table, and the notes below."""
    dashes = ["---:" if column.number else "---" for column in table.columns]
    lines = [[column.name for column in table.columns], dashes, *table.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([f"### {table.title}", body, *table.notes])
